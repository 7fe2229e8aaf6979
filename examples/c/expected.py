"""What PyTorch makes of the digits ticket of `make demo`: images and outputs as plain float32 files, for `digits.c`.

Batch norms are folded, as the C program folds them, and one thread computes, as there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.images import digits
from training.models import digits_net

import frozen_kernels as fk


def outputs_of(ticket: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of the network with its batch norms folded, and as it is; float32 [images, 10] on one thread."""
    model = fk.load_ticket(digits_net(), ticket, residency="planes").eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            unfolded = model(images)
            fk.fold_batch_norm_(model)
            return model(images), unfolded
    finally:
        torch.set_num_threads(threads)


def write(folder: Path, images: Tensor, outputs: Tensor) -> None:
    """`images.f32` and `outputs.f32`: float32, contiguous, nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in (("images", images), ("outputs", outputs)):
        (folder / f"{name}.f32").write_bytes(tensor.contiguous().numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticket", type=Path, default=Path("out/ticket.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/c"))
    options = parser.parse_args()
    images = digits()[1].images
    outputs, unfolded = outputs_of(options.ticket, images)
    write(options.out, images, outputs)
    predictions = outputs.argmax(1)
    for row in predictions.split(60):
        print(" ".join(map(str, row.tolist())))
    same = int((predictions == unfolded.argmax(1)).sum())
    print(f"{same} of {len(predictions)} predictions are those of the network with its batch norms")


if __name__ == "__main__":
    main()
