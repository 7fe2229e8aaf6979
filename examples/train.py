"""Train a frozen network, its dense baseline or a lottery jackpot, as a YAML file says.

`python examples/train.py --config examples/configs/digits.yaml`, or `torchrun --nproc-per-node 2 examples/train.py
--config ... --set parallel=fsdp` (or ddp) on many processes; `--set optimizer.lr=0.05` changes a value of the
file, `--resume` goes on after a crash. Log, checkpoint and ticket go to the folder `out` of the settings, and where
matplotlib is installed the curves of the log, curves.png and curves.svg.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

from training import processes, settings
from training.loop import LOG, Stopped, Trainer

import frozen_kernels as fk


def draw_curves(folder: Path) -> None:
    """Accuracies and loss by epoch, from the log; nothing where matplotlib is missing."""
    with open(folder / LOG, newline="") as file:
        history = list(csv.DictReader(file))
    try:
        fk.plot.curves(history, folder / "curves", title=str(folder))
    except ImportError as why:
        print(f"no curves: {why}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder `out`")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        chosen = settings.load(options.config, options.overrides)
        group = processes.start(chosen.parallel, chosen.device)
        trainer = Trainer(chosen, group, resume=options.resume, quiet=options.quiet)
        result = trainer.run()
    except (OSError, ValueError) as error:
        if os.environ.get("RANK", "0") == "0":  # all processes are refused the same
            print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped:
        print(f"stopped; --resume goes on from {chosen.out}", file=sys.stderr)
        return 130
    finally:
        processes.stop()
    if group.rank == 0:
        draw_curves(Path(chosen.out))
        masks = f", {result.mask_bytes:,} of them masks" if chosen.freeze else ""
        if result.compared:
            stages = ", ".join(f"{stage} {accuracy:.2%}" for stage, accuracy in result.compared.items())
            print(f"test accuracy with batch norm recalibrated: {stages}")
        print(f"{result.path}: {result.file_bytes:,} bytes{masks}; test accuracy {result.accuracy:.2%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
