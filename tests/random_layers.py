"""Random layers against float64 and against torch's own error, with every instruction set, residency and thread count.

    python tests/random_layers.py --layers 5000 --seed 0

Forward, input gradient and score gradient of each layer: at most twice torch's error, the largest and rms; infinity and
NaN where a dense product carries them; the same bits from every residency and from 1, 2, 3 and 7 threads. A failure
tells how to run its layer again. Exits with 1 after any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # 7 threads on few cores would spin against each other

import torch  # noqa: E402
from random_layer_cases import COMBINATIONS, Layer, Tensors, draw_layer, make_tensors, make_weight  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import frozen_kernels as fk  # noqa: E402
from benchmarks.sides import score_gradient  # noqa: E402
from benchmarks.verify import judge  # noqa: E402
from frozen_kernels import calls, functional  # noqa: E402
from frozen_kernels import format as fmt  # noqa: E402
from frozen_kernels.backends.cpu import extension, product  # noqa: E402
from frozen_kernels.backends.cpu import score_gradient as score_gradient_kernel  # noqa: E402

MOST_WORK = 1 << 22  # products of a forward
RESULTS = (800, 10000, 10000)  # fresh ones, over draws, that each have to confirm a failure
MOST_DRAWS = 200
THREADS = (1, 2, 3, 7)
RESIDENCIES = ("seed", "mask", "planes")

Results = dict[str, Tensor]  # by "forward", "input gradient" and "score gradient"


class Recorder:
    """The extension, which also notes the kernels that its products are served by."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(extension._C, name)

    def _note(self, operation: str, *args: Any) -> None:
        self.seen.add((operation, extension._C.kernel_of(operation, *args)))

    def convolve(self, pack: Any, sizes: Any, wide: Any, narrow: Any, *rest: Any) -> None:
        self._note("convolve", pack, sizes, wide, narrow)
        extension._C.convolve(pack, sizes, wide, narrow, *rest)

    def convolve_transposed(self, pack: Any, sizes: Any, narrow: Any, wide: Any, *rest: Any) -> None:
        self._note("convolve_transposed", pack, sizes, wide, narrow)
        extension._C.convolve_transposed(pack, sizes, narrow, wide, *rest)

    def score_gradient(self, pack: Any, sizes: Any, wide: Any, narrow: Any, *rest: Any) -> None:
        self._note("score_gradient", pack, sizes, wide, narrow)
        extension._C.score_gradient(pack, sizes, wide, narrow, *rest)


@contextlib.contextmanager
def recording() -> Iterator[set[tuple[str, str]]]:
    """The (operation, kernel) pairs that serve the block's calls."""
    recorder, modules = Recorder(), (product, score_gradient_kernel)
    for module in modules:
        module._C = recorder
    try:
        yield recorder.seen
    finally:
        for module in modules:
            module._C = extension._C


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """The CPU's kernels alone, uninitialised memory is NaN; level and threads are left as they were."""
    level, threads = extension._C.isa(), torch.get_num_threads()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
    try:
        with fk.backends.use("cpu"):
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_num_threads(threads)
        extension._C.set_isa(level)


def by_ops(layer: Layer, frozen: fk.FrozenTensor, t: Tensors) -> Results:
    """Our results through the functions of a layer and autograd."""
    if layer.op == "embedding":
        return _embedding(layer, frozen, t)
    function = getattr(functional, layer.op)
    with torch.no_grad():
        plain = frozen._replace(scores=None)
        found = {"forward": function(t.x, plain, t.bias, **layer.options, gain=t.gain, relu=layer.relu)}
    x = t.x.detach().requires_grad_()
    if frozen.scores is None:
        (grad_x,) = torch.autograd.grad(function(x, frozen, None, **layer.options), x, t.grad)
        return {**found, "input gradient": grad_x}
    scores = frozen.scores.detach().requires_grad_()
    y = function(x, frozen._replace(scores=scores), None, **layer.options)
    grad_x, grad_scores = torch.autograd.grad(y, (x, scores), t.grad)
    return {**found, "input gradient": grad_x, "score gradient": grad_scores}


def _embedding(layer: Layer, frozen: fk.FrozenTensor, t: Tensors) -> Results:
    assert frozen.scores is not None
    scores = frozen.scores.detach().requires_grad_()
    y = functional.embedding(t.x, frozen._replace(scores=scores), dtype=layer.dtype)
    return {"forward": y.detach(), "score gradient": torch.autograd.grad(y, scores, t.grad)[0]}


def prepared(layer: Layer, frozen: fk.FrozenTensor, t: Tensors) -> Results | None:
    """The same through prepared calls; None where they do not serve."""
    if layer.op == "embedding":
        return None
    steps = (layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    at, plain = calls.Geometry(layer.op, *steps), frozen._replace(scores=None)
    served = calls.prepare(plain, at, t.bias, t.gain, layer.relu, layer.dtype)
    trained = calls.prepare(plain, at, None, None, False, layer.dtype)
    if served is None or trained is None:
        return None
    with torch.no_grad():
        forward = served.forward(t.x)
    x = t.x.detach().requires_grad_()
    scores = None if frozen.scores is None else frozen.scores.detach().requires_grad_()
    y = trained.train(x, None, scores)
    if forward is None or y is None:
        return None
    of = [x] if scores is None else [x, scores]
    gradients = torch.autograd.grad(y, of, t.grad)
    return dict(zip(("forward", "input gradient", "score gradient"), (forward, *gradients), strict=False))


def _torchs_function(layer: Layer) -> Callable[..., Tensor]:
    function, options = getattr(F, layer.op), layer.options
    if layer.transposed or max(layer.dilation, default=1) == 1:
        return lambda x, weight, bias: function(x, weight, bias, **options)
    # oneDNN of torch 2.13 crashes where the taps of a dilated convolution read nothing but padding
    around = [p for padding in reversed(layer.padding) for p in (padding, padding)]
    return lambda x, weight, bias: function(F.pad(x, around), weight, bias, **{**options, "padding": 0})


def dense(layer: Layer, frozen: fk.FrozenTensor, t: Tensors, dtype: torch.dtype) -> Results:
    """Torch's results of that dtype with the effective weight."""
    weight = frozen._replace(scores=None).weight().to(dtype).requires_grad_()
    grad = t.grad.to(dtype)
    if layer.op == "embedding":
        y = F.embedding(t.x, weight)
        return {"forward": y.detach(), "weight gradient": torch.autograd.grad(y, weight, grad)[0]}
    # oneDNN of torch 2.13 writes outside its memory in a 1x1 convolution with a stride on channels_last tensors
    function, grad = _torchs_function(layer), grad.contiguous()
    x = t.x.to(dtype).contiguous().detach().requires_grad_()
    bias = None if t.bias is None else t.bias.to(dtype)
    # and, where processors have bfloat16, in transposed convolutions of volumes
    with torch.backends.mkldnn.flags(enabled=not (layer.op == "conv_transpose3d" and dtype == torch.bfloat16)):
        with torch.no_grad():
            factors = 1 if t.gain is None else t.gain.to(dtype).view(-1, *[1] * (weight.dim() - 1))
            if layer.transposed and t.gain is not None:
                factors = t.gain.to(dtype).view(layer.groups, 1, -1).expand(-1, layer.shape[0] // layer.groups, -1)
                factors = factors.reshape(*layer.shape[:2], *[1] * (weight.dim() - 2))
            y = function(x, weight * factors, bias)
            y = y.relu() if layer.relu else y
        grad_x, grad_weight = torch.autograd.grad(function(x, weight, None), (x, weight), grad)
    return {"forward": y, "input gradient": grad_x, "weight gradient": grad_weight}


def with_scores(frozen: fk.FrozenTensor, found: Results) -> Results:
    """Dense results with the gradient of the scores in place of the weight's."""
    found, grad = dict(found), found["weight gradient"]
    del found["weight gradient"]
    if frozen.scores is None:
        return found
    rows, cols = fmt.matrix_shape(frozen.shape)
    of = SimpleNamespace(header=frozen.header, rows=rows, cols=cols, code=frozen.code)
    found["score gradient"] = score_gradient(of, grad, frozen.scores)  # type: ignore[arg-type]
    return found


class Right(NamedTuple):
    torchs: Results
    exact: Results


def right(layer: Layer, frozen: fk.FrozenTensor, t: Tensors) -> Right:
    """What is compared with. Torch rounds its gradient of a half precision weight; ours is compared with float32's."""
    torchs = dense(layer, frozen, t, layer.dtype)
    if layer.dtype != torch.float32:
        torchs["weight gradient"] = dense(layer, frozen, t, torch.float32)["weight gradient"]
    sides = with_scores(frozen, torchs), with_scores(frozen, dense(layer, frozen, t, torch.float64))
    if frozen.scores is not None:
        sides[0]["score gradient"] = sides[0]["score gradient"].to(frozen.scores.dtype)
    return Right(*sides)


def misplaced(found: Tensor, exact: Tensor, skips_padding: bool) -> str:
    """What is not finite where the exact result is, or the reverse; near the dtype's largest value either may be.

    `skips_padding`: infinity times a zero of the padding may be left out, as oneDNN does; float64 makes a NaN of it.
    """
    largest = torch.finfo(found.dtype).max
    rounded = torch.where(exact.abs() > largest, exact.sign() * torch.inf, exact)
    clear = ~((exact.abs() > 0.99 * largest) & (exact.abs() < 1.01 * largest))
    if skips_padding:
        clear &= found.isnan() | ~exact.isnan()
    f, e = found[clear], rounded[clear]
    wrong = (f.isnan() != e.isnan()) | (f.isinf() != e.isinf()) | (e.isinf() & (f.double() != e))
    return f"{int(wrong.sum())} of {wrong.numel()} finite, infinite or NaN at the wrong places" if wrong.any() else ""


def finite(*sides: Tensor) -> list[Tensor]:
    """The values that are finite on all sides."""
    kept = torch.stack([side.isfinite() for side in sides]).all(0)
    return [side[kept] for side in sides]


def error(name: str, found: Sequence[Results], sides: Sequence[Right]) -> str:
    """What an operation's results of some draws have more than twice torch's error in."""
    trios = [(f[name], s.torchs[name], s.exact[name]) for f, s in zip(found, sides, strict=True)]
    if any(f.shape != t.shape or f.dtype != t.dtype for f, t, _ in trios):
        f, t, _ = trios[0]
        return f"{f.dtype} {list(f.shape)}, torch {t.dtype} {list(t.shape)}"
    values = [finite(*trio) for trio in trios]
    ours, torchs, exact = (torch.cat([v[i].flatten() for v in values]) for i in range(3))
    return judge(ours, torchs, exact).why if ours.numel() else ""


class Case:
    """A layer of a number with its weight, and what torch and float64 make of each draw of its inputs."""

    def __init__(self, number: int, layer: Layer) -> None:
        self.number, self.layer, self.frozen = number, layer, make_weight(layer)
        self._draws: dict[int, tuple[Tensors, Right]] = {}

    def draw(self, draw: int) -> tuple[Tensors, Right]:
        if draw not in self._draws:
            t = make_tensors(self.layer, draw)
            self._draws[draw] = t, right(self.layer, self.frozen, t)
        return self._draws[draw]


def confirmed(case: Case, name: str) -> str:
    """Draws anew until there are enough results to tell an error by; what is still too large."""
    draws, why = count(1), ""
    for results in RESULTS:
        found, sides = [], []
        for draw in draws:
            t, side = case.draw(draw)
            found.append(by_ops(case.layer, case.frozen, t))
            sides.append(side)
            if sum(f[name].numel() for f in found) >= results or len(found) >= MOST_DRAWS:
                break
        why = error(name, found, sides)
        if not why:
            return ""
    return why


def differing(a: Tensor, b: Tensor) -> int:
    """How many bits patterns differ: signs of zeros count, all NaN are one."""
    integers = torch.int32 if a.element_size() == 4 else torch.int16
    if torch.equal(a.view(integers), b.view(integers)):
        return 0
    return int(((a.view(integers) != b.view(integers)) & ~(a.isnan() & b.isnan())).sum())


def ways(
    layer: Layer, frozen: fk.FrozenTensor, number: int, team_sizes: Sequence[int]
) -> Iterator[tuple[str, int, fk.FrozenTensor, bool]]:
    """Residencies and numbers of threads, some by prepared calls; which meet changes with the number."""
    kinds = ("packed",) if layer.code == fmt.STORED else RESIDENCIES
    for i, threads in enumerate(team_sizes):
        residency = kinds[(i + number // 3) % len(kinds)]
        held = frozen if residency in ("packed", "planes") else frozen.hold(residency, with_offsets=True)
        yield residency, threads, held._replace(scores=frozen.scores), (i + number) % 2 == 1


def unequal(case: Case, t: Tensors, wanted: Results, level: str, team_sizes: Sequence[int]) -> list[str]:
    """Where residencies, threads or prepared calls change a bit."""
    # products on tiles sum blocks with infinity or NaN in another order, cut by threads
    exempt = level == "amx" and not (t.x.isfinite().all() and t.grad.isfinite().all())
    failures = []
    for residency, threads, held, may_prepare in ways(case.layer, case.frozen, case.number, team_sizes):
        torch.set_num_threads(threads)
        found, how = prepared(case.layer, held, t) if may_prepare else None, "prepared"
        if found is None:
            found, how = by_ops(case.layer, held, t), "by ops"
        for name, got in found.items():
            differ = 0 if exempt and name == "score gradient" else differing(got, wanted[name])
            if differ:
                with_what = f"{residency}, {threads} threads, {how}"
                failures.append(f"{name}: {differ} of {got.numel()} results have other bits with {with_what}")
    torch.set_num_threads(1)
    return failures


class Checked(NamedTuple):
    failures: list[str]
    kernels: set[tuple[str, str]]  # operation and name


def check(case: Case, level: str, team_sizes: Sequence[int]) -> Checked:
    """One layer with one instruction set."""
    extension._C.set_isa(level)
    t, sides = case.draw(0)
    with recording() as kernels:
        found = by_ops(case.layer, case.frozen, t)
    failures = []
    for name, got in found.items():
        why = error(name, [found], [sides]) and confirmed(case, name)
        padded = name == "score gradient" and any(case.layer.padding)
        why = misplaced(got, sides.exact[name], padded) or why
        if why:
            failures.append(f"{name}: {why}")
    return Checked(failures + unequal(case, t, found, level, team_sizes), kernels)


def run_layer(
    number: int, seed: int, levels: Sequence[str], most_work: int = MOST_WORK, team_sizes: Sequence[int] = THREADS
) -> dict[str, Checked]:
    """One layer with each instruction set; call it within `settings`."""
    case = Case(number, draw_layer(number, seed, most_work))
    return {level: check(case, level, team_sizes) for level in levels}


def _served(counts: dict[str, Counter[tuple[str, str]]]) -> str:
    """How many layers each kernel served, by level."""
    lines = []
    for level, served in counts.items():
        extension._C.set_isa(level)
        for operation, name, _ in extension._C.kernels():
            lines.append(f"  {level:<10}{operation:<22}{name:<16}{served[operation, name] or 'none'}")
    return "\n".join(("layers by kernel:", *lines))


def _arguments() -> argparse.Namespace:
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    levels = extension._C.isa_available()
    root.add_argument("--layers", type=int, default=5000, help="how many (default: %(default)s)")
    root.add_argument("--layer", type=int, help="this number alone")
    root.add_argument("--seed", type=int, default=0)
    root.add_argument("--level", default=",".join(levels), help="instruction sets, with commas (default: %(default)s)")
    root.add_argument("--kernels", action="store_true", help="list how many layers each kernel served")
    found = root.parse_args()
    found.level = found.level.split(",")
    unknown = set(found.level) - set(levels)
    if unknown:
        root.error(f"--level: {', '.join(unknown)}; this machine runs {', '.join(levels)}")
    return found


def main() -> int:
    options = _arguments()
    numbers = range(options.layers) if options.layer is None else [options.layer]
    counts: dict[str, Counter[tuple[str, str]]] = {level: Counter() for level in options.level}
    failed, start = 0, time.monotonic()
    again = f"python tests/random_layers.py --seed {options.seed} --level {{}} --layer {{}}"
    with settings():
        for done, number in enumerate(numbers, 1):
            found = run_layer(number, options.seed, options.level)
            for level, checked in found.items():
                counts[level].update(checked.kernels)
                for why in checked.failures:
                    print(f"{level}: {why}\n    {again.format(level, number)}")
            if any(checked.failures for checked in found.values()):
                failed += 1
                print(f"    {draw_layer(number, options.seed, MOST_WORK)}", flush=True)
            if done % (5 * len(COMBINATIONS)) == 0:
                print(f"{done} of {len(numbers)} layers, {time.monotonic() - start:.0f} s", flush=True)
    if options.kernels:
        print(_served(counts))
    print(f"{len(numbers)} layers on {', '.join(options.level)}: {failed} failed, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
