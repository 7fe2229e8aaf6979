"""Benchmarks of the Triton kernels on a GPU against cuBLAS, cuDNN and torch: `python -m benchmarks.gpu`."""
