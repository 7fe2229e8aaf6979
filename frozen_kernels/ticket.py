"""The former place of `tickets.model` and of reading and verifying, kept for programs that import from here."""

from .tickets.file import TensorRecord, Ticket, TicketError, read_ticket, verify_ticket
from .tickets.model import load_ticket, save_ticket

__all__ = ["TensorRecord", "Ticket", "TicketError", "load_ticket", "read_ticket", "save_ticket", "verify_ticket"]
