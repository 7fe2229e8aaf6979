"""Triton kernels of weight format 1; importing any of them imports triton."""
