"""Collects `cases_*.py` when they are named; mends the interpreter before any case launches a kernel."""

import torch
from common import INTERPRETING

# torch's own results on a GPU, which some cases compare with, must not depend on what cuDNN or TF32 chooses
torch.backends.cudnn.enabled = False
torch.backends.cuda.matmul.allow_tf32 = False

if INTERPRETING:
    import interpreter

    interpreter.mend()
