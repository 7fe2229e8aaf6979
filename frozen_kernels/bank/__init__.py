"""Many masks over one backbone: all supermasks of a model as one packed tensor, and named masks to switch and mix."""
