"""`bench`: a user's model in every residency beside dense torch, checked first and then timed in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import FreezeConfig
from ..convert.choose import FilterFn, candidates, model_bytes, passed_over
from ..convert.dense import to_dense
from ..convert.freeze import ConfigFn, finalize_, freeze_
from ..memory.crossover import active_level, processor
from ..memory.footprint import footprint, forward_peak, storage_bytes
from ..memory.residency import set_residency
from ..nn.models import frozen_layers, has_sharded, unwrapped
from ..tensor import ALL_RESIDENCIES
from .measure import MIN_ROUNDS, interleaved, quartiles, speedup
from .report import TORCH, BenchReport, BenchRow
from .verdict import Verdict, judge

ROUNDS, SECONDS = 50, 10.0  # of an input, at most
ENOUGH, MOST_TURNS = 1000, 8  # values that are compared; inputs that are made of one for them
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
    Its outputs are compared with those of the same weights in float64 first: a side whose largest or root mean square
    error is more than twice that of dense torch gets no time, and the report says so. Of an input that gives few
    values, more are made by turning its values around. Then forwards of all sides take turns on the threads of
    `torch.get_num_threads()`, in eval mode and without gradients. The memory format is that of the model and of x:
    convolutions in torch are faster on a CPU in `channels_last`. Copies of the model, one for each side, take memory
    while this runs.

    Args:
        model: a module; the one inside where it is in `torch.compile` or another wrapper. It is left as it is.
        x: the argument of a forward, a tuple of several arguments, or a list of such inputs, each measured by itself.
        config: as in `freeze_`, or the name of a preset; `FreezeConfig()` by default. None for a model that is frozen.
        filter_fn: as in `freeze_`.
        seconds: no further round starts after so many on one input; five rounds are timed at least.
        rounds: at most so many on one input.
        progress: called with the steps done, their number and what comes next, at last with an empty text.

    Returns:
        A report with a row for each side and input: bytes on disk, resident and at the peak of a forward, error,
        milliseconds and how many times faster than dense torch.

    Raises:
        TypeError: the model is no module, or the config none.
        ValueError: nothing in the model converts; a config for a model that is frozen; an empty list of inputs; the
            model refuses an input, or runs with it in its own dtype and not in float64; its output holds no floating
            tensor, or values that are not finite; less than 0 seconds or fewer than 1 round.
    """
    inputs = [sample if isinstance(sample, tuple) else (sample,) for sample in (x if isinstance(x, list) else [x])]
    _check(model, inputs, seconds, rounds)
    served, report = _converted(unwrapped(model), config, filter_fn)
    device = next((t.device for t in (*served.parameters(), *served.buffers())), torch.device("cpu"))
    plain = to_dense(served)
    names = [name for name in ALL_RESIDENCIES if any(name in m.residencies for m in frozen_layers(served).values())]
    sides = 2 + len(names)
    steps = _Steps(progress, len(inputs) * (1 + 2 * sides + 1))
    exact = _exact(plain, inputs, steps)
    held = _sides(served, plain, names)
    for args, right in zip(inputs, exact, strict=True):
        set_residency(held.models["auto"], "auto", args)
        rows = [_checked_row(name, held, args, right, steps) for name in held.models]
        report.rows += _timed(rows, held, args, device, (rounds, seconds), steps)
    report.machine = _machine(device, seconds)
    steps.begin("")
    return report


def _check(model: nn.Module, inputs: list[tuple[Any, ...]], seconds: float, rounds: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module, got {type(model).__name__}")
    if has_sharded(unwrapped(model)):
        raise ValueError("model: spread over processes by fully_shard; measure one that loaded its ticket")
    if not inputs:
        raise ValueError("x: an input or a list of several, got an empty list")
    if not seconds >= 0:
        raise ValueError(f"seconds: at least 0, got {seconds!r}")
    if rounds < 1:
        raise ValueError(f"rounds: at least 1, got {rounds!r}")


def _converted(
    model: nn.Module, config: FreezeConfig | ConfigFn | str | None, filter_fn: FilterFn | None
) -> tuple[nn.Module, BenchReport]:
    """A finalized copy in eval mode, and a report that says what of it is frozen."""
    served, kind = copy.deepcopy(model).eval(), type(model).__name__
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


def text_of(args: tuple[Any, ...]) -> str:
    """The arguments of a forward in short: sizes, and dtypes but float32."""

    def one(value: Any) -> str:
        if not isinstance(value, Tensor):
            return type(value).__name__
        dtype = "" if value.dtype == torch.float32 else " " + str(value.dtype).split(".")[-1]
        return ("x".join(map(str, value.shape)) or "scalar") + dtype

    return " + ".join(map(one, args))


def _tensors(output: Any) -> Iterator[Tensor]:
    """Floating tensors of an output: of tuples, lists and mappings, as of transformers, too."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, Sequence)) and not isinstance(output, str):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _turned(args: tuple[Any, ...], turn: int) -> tuple[Any, ...]:
    """Other arguments of the same sizes and dtypes: the values of each tensor, moved on by some places."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.flatten().roll(turn * (value.numel() // MOST_TURNS + 1)).view_as(value)

    return tuple(map(moved, args)) if turn else args


def _outputs(model: nn.Module, args: tuple[Any, ...], turns: int) -> Tensor:
    """All floating values that a model gives for an input and what is made of it, as one vector."""
    found = [t.flatten() for turn in range(turns) for t in _tensors(model(*_turned(args, turn)))]
    if not found:
        raise ValueError("model: its output holds no floating tensor to compare")
    widest = max((t.dtype for t in found), key=lambda dtype: dtype.itemsize)
    return torch.cat([t.to(widest) for t in found])


class _Right(NamedTuple):
    """What is right for an input: float64 values, those of dense torch, and of how many inputs they are."""

    exact: Tensor
    torchs: Tensor
    turns: int


def _exact(plain: nn.Module, inputs: list[tuple[Any, ...]], steps: _Steps) -> list[_Right]:
    """The outputs of the same weights in float64 and in torch. ValueError where the model refuses an input."""
    exact = copy.deepcopy(plain).double()
    found = []
    for args in inputs:
        steps.begin(f"{text_of(args)}: float64")
        try:
            count = _outputs(plain, args, 1).numel()
            turns = min(-(-ENOUGH // max(count, 1)), MOST_TURNS)
            torchs = _outputs(plain, args, turns)
        except ValueError as why:
            if str(why).startswith("model: "):
                raise
            raise _refused(args, why) from why
        except Exception as why:  # whatever a user's forward raises
            raise _refused(args, why) from why
        wide = tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in args)
        try:
            right = _outputs(exact, wide, turns)
        except Exception as why:
            raise ValueError(
                f"model: its forward does not run in float64, with which results are compared: "
                f"{type(why).__name__}: {why}"
            ) from why
        if not right.isfinite().all():
            raise ValueError(f"model: its values for {text_of(args)} are not all finite, and cannot be compared")
        found.append(_Right(right, torchs, turns))
    return found


def _refused(args: tuple[Any, ...], why: Exception) -> ValueError:
    return ValueError(f"x: the model refuses {text_of(args)}: {type(why).__name__}: {why}")


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


def _checked_row(name: str, sides: _Sides, args: tuple[Any, ...], right: _Right, steps: _Steps) -> BenchRow:
    """A side's bytes and the error of its outputs; a refusal where that is more than twice torch's."""
    model, text = sides.models[name], text_of(args)
    steps.begin(f"{text}: {name}, checked")
    found = right.torchs if name == TORCH else _outputs(model, args, right.turns)
    # of few values torch may be right by luck
    verdict: Verdict = judge(found, right.torchs, right.exact, least=torch.finfo(right.torchs.dtype).eps)
    refused = "" if verdict.passed else f"{verdict.why}; more than twice torch's error against float64"
    steps.begin(f"{text}: {name}, memory")
    layers: dict[str, int] = {}
    for layer in frozen_layers(model).values():
        layers[layer.residency] = layers.get(layer.residency, 0) + 1
    resident = storage_bytes((*model.parameters(), *model.buffers()))
    rise = forward_peak(model, args).bytes
    return BenchRow(
        text, name, layers, sides.disk[name], resident, rise, verdict.error, verdict.torch_error, refused=refused
    )


def _timed(
    rows: list[BenchRow], sides: _Sides, args: tuple[Any, ...], device: torch.device, limits: tuple[int, float],
    steps: _Steps,
) -> list[BenchRow]:  # fmt: skip
    """The rows with the times of those that are right."""
    rounds, seconds = max(limits[0], MIN_ROUNDS), limits[1]
    steps.begin(f"{text_of(args)}: timed, up to {seconds:g} s")
    calls = {row.side: _call(sides.models[row.side], args, device) for row in rows if not row.refused}
    times = interleaved(calls, rounds, seconds)
    found = []
    for row in rows:
        if row.side in times:
            taken = times[row.side]
            low, middle, high = quartiles(taken)
            faster = speedup(times[TORCH], taken).median
            row = replace(row, rounds=len(taken), median=middle, low=low, high=high, speedup=faster)
        found.append(row)
    return found


def _call(model: nn.Module, args: tuple[Any, ...], device: torch.device) -> Callable[[], object]:
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
