"""Tickets: `file` is what a file says, `model` moves it out of a model and into one."""
