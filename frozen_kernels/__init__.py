"""frozen_kernels: fused kernels for networks whose weights are never stored."""
from . import backends, format, ops
