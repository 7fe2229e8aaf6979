"""Compiles every launch of the Triton ops for a GPU that is not here and holds what came out to budgets.

    python tests/gpu/offline.py sm_90            # a table, and what is wrong
    python tests/gpu/offline.py sm_90 --json     # for test_triton.py
    python tests/gpu/offline.py sm_80 --json --even   # every second case, and --odd the others
    python tests/gpu/offline.py sm_90 --record   # the numbers of now as budgets, on the pinned triton

In a process without TRITON_INTERPRET; needs no GPU or driver.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
from compiled import TARGETS, lacking, measure, recorded
from offline_cases import Case, cases

from frozen_kernels.backends import triton as backend
from frozen_kernels.backends.triton import kernels

HERE = pathlib.Path(__file__).parent
BUDGETS = HERE / "budgets.json"
PINS = HERE.parent.parent / "constraints.txt"
SLACK = 1.1
HALVES = {"--even": slice(0, None, 2), "--odd": slice(1, None, 2)}


def all_kernels() -> set[str]:
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        source = importlib.import_module(module.name)
        found |= {name for name in vars(source) if name.endswith("_kernel")}
    return found


@contextlib.contextmanager
def believing(target: str) -> Iterator[None]:
    """The launchers take tensors of the CPU for tensors of the target."""
    with contextlib.ExitStack() as stack:
        for module in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}."):
            launcher = importlib.import_module(module.name)
            if hasattr(launcher, "interpreting"):
                stack.enter_context(mock.patch.object(launcher, "interpreting", lambda: True))
            if module.name.endswith(".tuning"):
                stack.enter_context(mock.patch.object(launcher, "target", lambda device: target))
        # counts of what never ran are zero, and an empty result would launch nothing
        stack.enter_context(mock.patch.object(torch, "cumsum", lambda counts, dim: torch.full_like(counts, 4096)))
        yield


def budgets(target: str) -> dict[str, list[float]]:
    return json.loads(BUDGETS.read_text()).get(target, {}) if BUDGETS.exists() else {}


def pinned() -> bool:
    return f"triton=={triton.__version__}\n" in PINS.read_text()


def faults(row: dict[str, Any], budget: dict[str, list[float]], whole: bool = True) -> list[str]:
    """What is wrong with a launch."""
    found = []
    if row["spills"]:
        found.append(f"spills {row['spills']} bytes")
    if row["serialised"]:
        found.append(f"tensor cores wait for the decode: {', '.join(row['serialised'])}")
    if not pinned():
        return found
    if row["key"] not in budget:
        return [*found, "has no budget"] if whole else found
    for name, measured in zip(("registers", "instructions"), budget[row["key"]], strict=True):
        if row[name] > measured * SLACK:
            found.append(f"takes {row[name]} {name}, {measured} when its budget was made")
    return found


def product_faults(case: Case, target: str, rows: list[dict[str, Any]]) -> list[str]:
    """What is missing from all launches of a case together."""
    found = []
    if case.product == "large" and target == "sm_90" and not any(row["asynchronous"] for row in rows):
        found.append("no wgmma")
    if case.product and not any(row["matrix"] or row["sums"] for row in rows):
        found.append("no products of tiles")
    return found


def proven(target: str, half: slice | None = None) -> Iterator[dict[str, Any]]:
    """A row for each distinct launch, then what is wrong with it, with its case, or with all.

    Of half of the cases a launch that the other half shares may have its budget under the name of one of those.
    """
    budget, launched = budgets(target), set()
    known: dict[str, dict[str, Any]] = {}
    for case in list(cases(target))[half or slice(None)]:
        with believing(target), recorded(target) as launches:
            case.call()
        rows = []
        for launch in launches:
            launched.add(launch.kernel)
            if launch.built.hash not in known:
                same = sum(row["kernel"] == launch.kernel for row in rows)
                key = f"{case.name}/{launch.kernel}" + (f"-{same + 1}" if same else "")
                row = known[launch.built.hash] = {"key": key, **measure(launch)}
                yield row
                yield {"at": key, "faults": faults(row, budget, half is None)}
            rows.append(known[launch.built.hash])
        yield {"at": case.name, "faults": product_faults(case, target, rows)}
    never = all_kernels() - launched if half is None else set()
    yield {"at": "all cases", "faults": [f"never launch {name}" for name in sorted(never)]}


def record(target: str, rows: list[dict[str, Any]]) -> None:
    assert pinned(), f"triton {triton.__version__} is not the one that {PINS.name} pins"
    table = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    table[target] = {row["key"]: [row["registers"], row["instructions"]] for row in rows if "key" in row}
    lines = [
        f'"{name}": {{\n' + ",\n".join(f"{json.dumps(key)}: {json.dumps(both)}" for key, both in kept.items()) + "\n}"
        for name, kept in sorted(table.items())
    ]
    BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def show(row: dict[str, Any]) -> None:
    if "faults" in row:
        for fault in row["faults"]:
            print("WRONG", row["at"], fault, flush=True)
        return
    print(
        f"{row['key']:58s} {row['registers']:4d} regs {row['spills']:4d} spilt {row['shared']:7d} shared "
        f"{row['matrix']:4d} matrix {row['asynchronous']:3d} async {','.join(row['serialised']):6s} "
        f"{row['instructions']:7.2f} each: alu {row['alu']:.2f} fma {row['fma']:.2f} memory {row['memory']:.2f}",
        flush=True,
    )


def main(target: str, *options: str) -> None:
    if target not in TARGETS or set(options) - {"--json", "--record", *HALVES}:
        raise SystemExit(f"usage: offline.py {'|'.join(TARGETS)} [--json | --record] [--even | --odd]")
    if why := lacking(target):
        print(json.dumps({"skipped": f"missing: {why}"}))
        return
    rows = []
    half = next((part for option, part in HALVES.items() if option in options), None)
    if half is not None and "--record" in options:
        raise SystemExit("--record: budgets are of all cases, not of half of them")
    for row in proven(target, half):
        rows.append(row)
        print(json.dumps(row)) if "--json" in options else show(row)
    if "--record" in options:
        record(target, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
