"""What frozen layers keep in memory, which residency is fast where, and what a model takes in bytes."""
