"""Run in a fresh process by `test_process_memory`: prints memory that forwards make resident, in results of a layer.

Before them malloc holds what a search leaves: the free memory of scores, between blocks that stay.
"""

import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.memory.footprint import _status
from frozen_kernels.process import release_memory

LAYERS, SIZE, BATCH, FORWARDS = 8, 1024, 256, 40
RESULT = 4 * BATCH * SIZE


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(2)
    model = nn.Sequential(*(fk.nn.FrozenLinear(SIZE, SIZE, bias=False, stream=i) for i in range(LAYERS)))
    fk.finalize_(model)
    x = torch.ones(BATCH, SIZE)
    model(x)
    # the first that is freed raises glibc's threshold, so the rest lies in its heap
    torch.ones(20 * RESULT // 4)
    scores = [torch.ones((2 + i % 5) * RESULT // 4 + 1000 * i) for i in range(24)]
    stays = [torch.ones(RESULT // 8) for _ in scores]
    scores.clear()
    release_memory()
    before = _status("VmRSS")
    for _ in range(FORWARDS):
        y = model(x)
    print((_status("VmRSS") - before) / RESULT)
    del stays, y


if __name__ == "__main__":
    main()
