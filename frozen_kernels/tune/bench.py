"""`bench`: a user's model in every residency beside dense torch, checked first and then timed in turns."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import FreezeConfig
from ..convert.choose import FilterFn, candidates, model_bytes, passed_over
from ..convert.dense import to_dense
from ..convert.freeze import ConfigFn, finalize_, freeze_
from ..memory.crossover import active_level, processor
from ..memory.footprint import footprint, forward_peak, storage_bytes
from ..memory.residency import set_residency
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, has_sharded, refuse_lazy, unwrapped
from ..nn.twins import is_layer
from ..tensor import ALL_RESIDENCIES
from .measure import MIN_ROUNDS, interleaved, quartiles, speedup
from .outputs import Args, Right, cloned, judged, outputs, right_for, text_of
from .report import TORCH, BenchReport, BenchRow

ROUNDS, SECONDS = 20, 10.0  # of an input, at most
Progress = Callable[[int, int, str], object]


class _Sides(NamedTuple):
    """The model in torch's own layers and in each residency, by name, and bytes of a ticket."""

    models: dict[str, nn.Module]
    disk: dict[str, int | None]


class _Steps:
    """Tells a function how far a comparison is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def begin(self, what: str) -> None:
        """The next step, or the end where `what` is empty."""
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += 1


@torch.inference_mode(False)
@torch.no_grad()
def bench(
    model: nn.Module,
    x: Any,
    config: FreezeConfig | ConfigFn | str | None = None,
    filter_fn: FilterFn | None = None,
    *,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> BenchReport:
    """Compare a model in every residency, and in the one that `auto` picks, with dense torch of the same weights.

    A copy of the model is converted by `freeze_` and finalized; one that holds frozen layers already is taken as it is.
    Each of its outputs is compared with that of the same weights in float64 first: a side whose largest or root mean
    square error is more than twice that of dense torch gets no time, and the report says so. Of an input that gives few
    values, more are made by turning its floating values around, where the model takes them. Torch may be right by luck:
    one eps of the dtype counts as its error where that is smaller, four eps of fewer than 1000 values. Then forwards of
    all sides take turns on the threads of `torch.get_num_threads()`, in eval mode and without gradients. The memory
    format is that of the model and of x: convolutions in torch are faster on a CPU in `channels_last`. Copies of the
    model, one for each side, take memory while this runs. The state of torch's random numbers stays.

    Args:
        model: a module; the one inside where it is in `torch.compile` or another wrapper. It is left as it is.
        x: the argument of a forward, a tuple of several arguments, or a list of such inputs, each measured by itself.
            It is left as it is.
        config: as in `freeze_`, or the name of a preset; `FreezeConfig()` by default. None for a model that is frozen.
        filter_fn: as in `freeze_`.
        seconds: no further round starts after so many on one input; five rounds are timed at least.
        rounds: at most so many on one input.
        progress: called with the steps done, their number and what comes next, at last with an empty text.

    Returns:
        A report with a row for each side and input: bytes on disk, resident and at the peak of a forward, error,
        milliseconds and how many times faster than dense torch.

    Raises:
        TypeError: the model is no module, the config none, seconds no number or rounds no integer.
        ValueError: nothing in the model converts, it cannot be copied, or has lazy layers; a config for a model that is
            frozen; an empty list of inputs; the model refuses an input, runs with it in its own dtype and not in
            float64, or refuses frozen layers; dense torch gives other values at a second call; an output holds no
            floating tensor, values that are not finite, or zeros alone; less than 0 seconds or fewer than 1 round.
    """
    inputs = [sample if isinstance(sample, tuple) else (sample,) for sample in (x if isinstance(x, list) else [x])]
    _check(model, inputs, seconds, rounds)
    served, report = _converted(unwrapped(model), config, filter_fn)
    device = next((t.device for t in (*served.parameters(), *served.buffers())), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        report.rows = _compared(served, inputs, device, (rounds, seconds), progress)
    report.machine = _machine(device, seconds)
    return report


def _compared(
    served: nn.Module, inputs: list[Args], device: torch.device, limits: tuple[int, float], progress: Progress | None
) -> list[BenchRow]:
    """A row for each side and input."""
    plain = to_dense(served)
    names = [name for name in ALL_RESIDENCIES if any(name in m.residencies for m in frozen_layers(served).values())]
    sides = 2 + len(names)
    steps = _Steps(progress, len(inputs) * (1 + 2 * sides + 1))
    exact = copy.deepcopy(plain).double()
    rights = []
    for args in inputs:
        steps.begin(f"{text_of(args)}: float64")
        rights.append(right_for(plain, exact, args))
    held = _sides(served, plain, names)
    found = []
    for args, right in zip(inputs, rights, strict=True):
        _called(partial(set_residency, held.models["auto"], "auto", cloned(args)), "auto")
        rows = [_checked_row(name, held, args, right, steps) for name in held.models]
        found += _timed(rows, held, args, device, limits, steps)
    steps.begin("")
    return found


def _called(call: Callable[[], Any], side: str) -> Any:
    """What a call returns. ValueError where the user's forward fails in it."""
    try:
        return call()
    except Exception as why:  # whatever a user's forward raises
        raise ValueError(f"model: its forward fails, weights as {side}: {type(why).__name__}: {why}") from why


def _check(model: nn.Module, inputs: list[Args], seconds: float, rounds: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module, got {type(model).__name__}")
    if has_sharded(unwrapped(model)):
        raise ValueError("model: spread over processes by fully_shard; measure one that loaded its ticket")
    if not inputs:
        raise ValueError("x: an input or a list of several, got an empty list")
    refuse_lazy(model)
    if not isinstance(seconds, numbers.Real):
        raise TypeError(f"seconds: a number, got {seconds!r}")
    if not isinstance(rounds, numbers.Integral):
        raise TypeError(f"rounds: an integer, got {rounds!r}")
    if not seconds >= 0:
        raise ValueError(f"seconds: at least 0, got {seconds!r}")
    if rounds < 1:
        raise ValueError(f"rounds: at least 1, got {rounds!r}")


def _converted(
    model: nn.Module, config: FreezeConfig | ConfigFn | str | None, filter_fn: FilterFn | None
) -> tuple[nn.Module, BenchReport]:
    """A finalized copy in eval mode, and a report that says what of it is frozen."""
    kind = type(model).__name__
    try:
        served = copy.deepcopy(model).eval()
    except Exception as why:  # whatever the attributes of a user's model raise
        raise ValueError(f"model: it cannot be copied by copy.deepcopy: {type(why).__name__}: {why}") from why
    if is_layer(served) or isinstance(served, FrozenLayer):
        served = nn.Sequential(served)  # a layer is converted in the module that holds it
    if frozen_layers(served):
        if config is not None:
            raise ValueError(f"config: None for a model that is frozen already, got {config!r}")
        chosen, skipped = candidates(served, filter_fn)
        left = [(name, "dense in the model given") for name in chosen]
        left += [(name, why) for name, why in skipped if why != "already frozen"] + passed_over(served)[0]
        frozen, whole = model_bytes(served, {})
        said = "frozen in the model given"
    else:
        config = FreezeConfig.preset(config) if isinstance(config, str) else config
        done = freeze_(served, config, filter_fn)
        left, frozen, whole = done.skipped, done.frozen_bytes, done.model_bytes
        said = "a config for each layer" if callable(config) else _said(FreezeConfig() if config is None else config)
    finalize_(served)
    return served, BenchReport(kind, said, len(frozen_layers(served)), frozen, whole, left, {})


def _said(config: FreezeConfig) -> str:
    ratios = f", freeze ratio {config.freeze_ratio:g}" if config.freeze_ratio else ""
    return f"code {config.code}, sparsity {config.sparsity:g}{ratios}, seed {config.seed}"


def _sides(served: nn.Module, plain: nn.Module, names: list[Any]) -> _Sides:
    """Dense torch, a copy in each residency, and one that `auto` will choose for."""
    models: dict[str, nn.Module] = {TORCH: plain}
    for name in names:
        models[name] = copy.deepcopy(served)
        set_residency(models[name], name)
    models["auto"] = served
    ticket = footprint(served).totals()["disk"]["total"]
    disk: dict[str, int | None] = dict.fromkeys(models, ticket)
    disk[TORCH] = footprint(plain).ordinary_disk
    return _Sides(models, disk)


def _checked_row(name: str, sides: _Sides, args: Args, right: Right, steps: _Steps) -> BenchRow:
    """A side's bytes and the error of its outputs; a refusal where that is more than twice torch's."""
    model, text = sides.models[name], text_of(args)
    steps.begin(f"{text}: {name}, checked")
    found = right.torchs if name == TORCH else _called(lambda: outputs(model, args, right.turns), name)
    verdict = judged(found, right)
    refused = "" if verdict.passed else f"{verdict.why}; more than twice torch's error against float64"
    steps.begin(f"{text}: {name}, memory")
    layers: dict[str, int] = {}
    for layer in frozen_layers(model).values():
        layers[layer.residency] = layers.get(layer.residency, 0) + 1
    resident = storage_bytes((*model.parameters(), *model.buffers()))
    rise = _called(lambda: forward_peak(model, cloned(args)).bytes, name)
    error = verdict.error if math.isfinite(verdict.error) else None
    return BenchRow(text, name, layers, sides.disk[name], resident, rise, error, verdict.torch_error, refused=refused)


def _timed(
    rows: list[BenchRow], sides: _Sides, args: Args, device: torch.device, limits: tuple[int, float],
    steps: _Steps,
) -> list[BenchRow]:  # fmt: skip
    """The rows with the times of those that are right."""
    rounds, seconds = max(limits[0], MIN_ROUNDS), limits[1]
    steps.begin(f"{text_of(args)}: timed, up to {seconds:g} s")
    calls = {row.side: _call(sides.models[row.side], args, device) for row in rows if not row.refused}
    times = _called(lambda: interleaved(calls, rounds, seconds), "each side in turn")
    found = []
    for row in rows:
        if row.side in times:
            taken = times[row.side]
            low, middle, high = quartiles(taken)
            faster = speedup(times[TORCH], taken).median
            row = replace(row, rounds=len(taken), median=middle, low=low, high=high, speedup=faster)
        found.append(row)
    return found


def _call(model: nn.Module, args: Args, device: torch.device) -> Callable[[], object]:
    args = cloned(args)
    if device.type != "cuda":
        return lambda: model(*args)

    def run() -> None:
        model(*args)
        torch.cuda.synchronize(device)

    return run


def _machine(device: torch.device, seconds: float) -> dict[str, Any]:
    """What a comparison was made on."""
    gpu = device.type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if gpu else processor(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "kernels": "GPU" if gpu else active_level() or "none, the extension is missing",
        "torch": torch.__version__,
        "seconds": seconds,
    }
