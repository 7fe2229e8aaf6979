"""One small product by each family of CUDA C++ kernels, for `compute-sanitizer`; exit status 1 for a wrong result."""

from __future__ import annotations

import sys

import torch
from common import dense, header, pack_of, small_integers, stored_pack
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels.backends import cuda


def main() -> int:
    half, found = torch.bfloat16, {}
    for code in ("sign", "uniform", "normal"):
        pack = pack_of(header(scale=1.0), "mask", code, (48, 1024))
        x = small_integers(2, 1024, dtype=half)
        found[f"linear, {code}"] = cuda.linear(x, None, None, *pack), x.double() @ dense(pack).double().T
    # few pixels of 16 bits are served by digits, these by halves, and from planes
    for residency, code, dtype, pixels in (
        ("mask", "sign", half, 8),
        ("planes", "sign", half, 16),
        ("planes", "sign", torch.float32, 2),
        ("planes", "uniform", half, 4),
    ):
        pack = pack_of(header(scale=1.0), residency, code, (48, 1024))
        x = small_integers(pixels, 1024, dtype=dtype)
        found[f"{residency}, {code}, {pixels}"] = cuda.linear(x, None, None, *pack), x.double() @ dense(pack).double().T
    pack = pack_of(header(scale=1.0), "planes", "sign", (48, 256))
    grad = small_integers(2, 48, dtype=half)
    found["gradient of the input"] = cuda.linear_grad_input(grad, *pack), grad.double() @ dense(pack).double()
    stored, exact = stored_pack((40, 1500), "float16")
    stored = (*stored[:6], stored[6].clone(), *stored[7:])  # aligned to 16 bytes
    x, grad = small_integers(3, 1500, dtype=half), small_integers(3, 40, dtype=half)
    found["linear, stored"] = cuda.linear(x, None, None, *stored), x.double() @ exact.double().T
    found["its gradient"] = cuda.linear_grad_input(grad, *stored), grad.double() @ exact.double()
    for channels, taps, residency in ((16, 3, "planes"), (24, 3, "mask"), (3, 7, "planes")):
        pack = pack_of(header(scale=1.0), residency, "sign", (24, channels, taps, taps))
        x = small_integers(1, channels, 12, 12, dtype=half).contiguous(memory_format=torch.channels_last)
        got = cuda.conv2d(x, None, None, *pack, [1, 1], [1, 1], [1, 1], 1)
        found[f"{taps} x {taps} convolution, {residency}"] = got, F.conv2d(x.double(), dense(pack).double(), None, 1, 1)
    wrong = [name for name, (got, want) in found.items() if not torch.equal(got, want.to(got.dtype))]
    print(f"{len(found)} products, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    with fk.backends.use("cuda"), torch.no_grad():
        sys.exit(main())
