"""Measuring on the machine at hand: `measure` times, `table` and `tiles` make the tables that choices read."""
