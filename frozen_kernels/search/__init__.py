"""Searches of a supermask: what they have in common in `rule`, each rule in a file of its own."""
