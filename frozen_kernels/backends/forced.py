"""The backend that `use` forces, process-wide: autograd runs a device's backward in a thread of its own."""

name: str | None = None
