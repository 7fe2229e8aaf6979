"""The former place of `tickets.file`, kept for programs that import from here."""

from .tickets.file import PREFIX, TensorRecord, Ticket, TicketError, content_digest, read_ticket, verify_ticket

__all__ = ["PREFIX", "TensorRecord", "Ticket", "TicketError", "content_digest", "read_ticket", "verify_ticket"]
