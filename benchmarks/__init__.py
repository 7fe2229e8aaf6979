"""Benchmarks against torch: `python -m benchmarks.run` measures, `python -m benchmarks.check` compares with records."""
