"""Process memory of a whole model that serves: `python -m benchmarks.model_memory NAME KEPT TICKET`, a fresh process.

KEPT is a residency, of the model that TICKET holds, or `dense` for torch's own. Prints JSON: bytes that the model keeps
in memory, and by how many memory rises in a forward of one input, null where the system does not tell.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import frozen_kernels as fk

from .models import WHOLE
from .whole import as_served, dense_model, serve, serve_dense


@torch.no_grad()
def measure(name: str, kept: str, ticket: Path) -> dict[str, int | None]:
    x = as_served(torch.randn(1, *WHOLE[name].input))
    if kept == "dense":
        model = serve_dense(dense_model(name))
    else:
        with torch.device("meta"):
            empty = WHOLE[name].make().eval()
        model = serve(fk.load_ticket(empty, ticket), kept, x)
    found = fk.footprint(model, x)
    return {"resident": found.totals()["resident"]["total"], "rise": found.peak.bytes}


if __name__ == "__main__":
    chosen, residency, file = sys.argv[1:]
    print(json.dumps(measure(chosen, residency, Path(file))))
