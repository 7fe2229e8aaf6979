"""What a backend raises where it cannot serve."""


class Unsupported(RuntimeError):
    """A backend cannot serve these arguments; raised before any work is done."""
