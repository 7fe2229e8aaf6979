"""What is measured, and what it is measured against: every case, and the targets that cases count towards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from frozen_kernels.tensor import resident_bytes

from .models import NETS, WHOLE, Convolution, convolutions, weight_shapes
from .targets import LONGER, TARGETS

FREE = 0.3  # share of free weights at freeze ratio 0.7
LINEAR_SHAPES = ((4096, 4096), (11008, 4096), (1000, 2048))
LINEAR_BATCHES = (1, 4, 16, 64, 256)
CONV_BATCHES = (1, 16)
SCORES = 11_200_000
DTYPES = {"float32": 4, "bfloat16": 2}
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
KEPT = (("sign", "planes"), ("sign", "mask"), ("sign", "seed"), ("uniform", "mask"), ("normal", "mask"))
RESIDENT = ("seed", "mask", "planes", "dense")
CALL_BATCHES = (1, 16)
KINDS_OF_CALL = {"no_grad": "mask", "inference_mode": "mask", "dense": "dense", "train": "mask"}  # and what is kept
STORED_VALUES = ("float32", "float16")
STORED_BATCHES = (1, 16, 64)
WHOLE_BYTES = ("disk", "resident", "peak")
FIXED = ("seed", "mask")  # residencies whose bytes depend neither on the machine nor on the batch
HELD_LAYERS = (24, 4096, 4096)  # how many, and their rows and columns


@dataclass(frozen=True)
class Case:
    """One measurement. Cases of one `setting` share inputs and baselines and are measured in the same rounds.

    `bytes`: of the frozen weight in its residency; `operations`: multiply-adds of a dense weight; both 0 where they say
    nothing. `other` names a second baseline. `threads`: 0 for those of the run. `line`: what the case counts towards in
    `TARGETS`.
    """

    name: str
    setting: str
    group: str
    op: str
    shape: tuple[int, ...]
    input: tuple[int, ...]
    dtype: str
    code: Any  # one of FreezeConfig's
    residency: Any  # one of the residencies, or a word of the case's own
    batch: int
    baseline: str
    other: str = ""
    geometry: tuple = ()  # stride, padding, dilation, groups
    threshold_bits: int = 16
    threads: int = 0
    bytes: int = 0
    operations: int = 0
    line: str = ""

    @property
    def target(self) -> float | None:
        """The goal of the first target that the case counts towards, as the case's ratio where it has one."""
        return next((1 / t.goal if t.unit == LONGER else t.goal for t in TARGETS if t.line == self.line), None)


def _held(shape: tuple[int, ...], code: str, residency: str, itemsize: int = 4) -> int:
    return resident_bytes(shape, code, round(FREE * math.prod(shape)), residency, itemsize)


def _linear_line(shape: tuple[int, ...], batch: int, dtype: str, code: str, residency: str, bits: int) -> str:
    suffix = "-bf16" if dtype == "bfloat16" else ""
    if batch >= 64 and (code, residency) == ("sign", "planes"):
        return "batch-planes" + suffix
    if batch == 1 and shape == LINEAR_SHAPES[0] and not suffix and code in ("uniform", "normal"):
        return "vector-bytes"
    if batch in (4, 16) and shape == LINEAR_SHAPES[0] and not suffix and (code, residency) == ("sign", "planes"):
        return f"few-planes-{batch}"
    if batch == 1 and shape == LINEAR_SHAPES[0] and code == "sign" and (not suffix or residency == "planes"):
        return f"vector-{residency}" + suffix + ("-8" if bits == 8 else "")
    return ""


def _linear_cases(shape: tuple[int, int], batch: int, dtype: str) -> Iterator[Case]:
    setting = f"linear/{shape[0]}x{shape[1]}/b{batch}/{SHORT[dtype]}"
    kinds = [(code, residency, 16) for code, residency in KEPT]
    if batch == 1:
        kinds.append(("sign", "seed", 8))
    for code, residency, bits in kinds:
        yield Case(
            name=f"{setting}/{code}/{residency}" + (f"{bits}" if bits != 16 else ""),
            setting=setting,
            group="linear",
            op="linear",
            shape=shape,
            input=(batch, shape[1]),
            dtype=dtype,
            code=code,
            residency=residency,
            batch=batch,
            baseline="torch",
            other="masked dense",
            threshold_bits=bits,
            bytes=_held(shape, code, residency),
            operations=batch * math.prod(shape),
            line=_linear_line(shape, batch, dtype, code, residency, bits),
        )


def output_size(conv: Convolution) -> tuple[int, ...]:
    """Spatial size of a convolution's output."""
    sizes = zip(conv.size, conv.shape[2:], conv.stride, conv.padding, conv.dilation, strict=True)
    return tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in sizes)


def _conv_cases(group: str, conv: Convolution, batch: int, kinds: tuple[tuple[str, str], ...]) -> Iterator[Case]:
    grouped = f"/g{conv.groups}" if conv.groups > 1 else ""
    size, stride = "x".join(map(str, conv.shape)), conv.stride[0]
    setting = f"conv2d/{size}/{conv.size[0]}/s{stride}{grouped}/b{batch}/fp32"
    for code, residency in kinds:
        line = f"conv-{residency if code == 'sign' else 'bytes'}"
        if group == "mobilenet":
            line = "mobilenet" if residency == "planes" else ""
        yield Case(
            name=f"{setting}/{code}/{residency}",
            setting=setting,
            group=group,
            op="conv2d",
            shape=conv.shape,
            input=(batch, conv.shape[1] * conv.groups, *conv.size),
            dtype="float32",
            code=code,
            residency=residency,
            batch=batch,
            baseline="torch",
            other="masked dense",
            geometry=(conv.stride, conv.padding, conv.dilation, conv.groups),
            bytes=_held(conv.shape, code, residency),
            operations=batch * math.prod(conv.shape) * math.prod(output_size(conv)),
            line=line,
        )


def resnet_convolutions() -> list[Convolution]:
    """The distinct convolutions of ResNet-18 and ResNet-50."""
    return list(dict.fromkeys(convolutions("resnet18") + convolutions("resnet50")))


def mobilenet_convolutions() -> list[Convolution]:
    """The distinct depthwise and 1x1 convolutions of MobileNetV2."""
    return [c for c in convolutions("mobilenet_v2") if c.groups > 1 or c.shape[2:] == (1, 1)]


@cache  # each question runs the model on no data, which takes most of the time of a registry
def model_operations(name: str) -> int:
    """Multiply-adds of the convolutions and linear layers of a model on one image."""
    runs = sum(math.prod(c.shape) * math.prod(output_size(c)) for c in convolutions(name, distinct=False))
    return runs + sum(math.prod(s) for s in weight_shapes(name) if len(s) == 2)


def _model_cases() -> Iterator[Case]:
    """Whole models: held in the same bytes everywhere, and as `auto` chooses for the machine and the batch."""
    for name, net in WHOLE.items():
        counted = name != "bert_base"  # attention has products that are no layer's
        for batch in CONV_BATCHES:
            setting = f"model/{name}/b{batch}/fp32"
            for residency in (*FIXED, "auto"):
                fixed = counted and residency in FIXED
                yield _plain(
                    f"{setting}/sign/{residency}", "model", name, setting=setting, residency=residency, batch=batch,
                    input=(batch, *net.input), baseline="torch",
                    bytes=sum(_held(s, "sign", residency) for s in weight_shapes(name)) if fixed else 0,
                    operations=batch * model_operations(name) if counted else 0,
                    line="model" if counted and residency == "auto" else "",
                )  # fmt: skip


def _whole_cases() -> Iterator[Case]:
    """Bytes of dense models and of those that hold the same everywhere, on disk and in a process of their own.

    None of `auto`: another process may choose otherwise, so its bytes are told of the model that is timed.
    """
    for name, net in WHOLE.items():
        for residency in ("dense", *FIXED):
            for kind in WHOLE_BYTES:
                yield _plain(f"whole/{name}/{residency}/{kind}", "whole", f"{name} {kind}", residency=residency,
                             input=(1, *net.input), batch=1)  # fmt: skip


def _gradient_cases() -> Iterator[Case]:
    conv = Convolution((256, 256, 3, 3), (14, 14), (1, 1), (1, 1), (1, 1), 1)
    layers = (("linear", (4096, 4096), (64, 4096), (), 1),
              ("conv2d", conv.shape, (16, 256, *conv.size), (*conv[2:],), math.prod(output_size(conv))))  # fmt: skip
    for op, shape, size, geometry, pixels in layers:
        for kind in ("grad_input", "grad_scores"):
            setting = f"gradient/{op}_{kind}/{'x'.join(map(str, shape))}/b{size[0]}/fp32"
            for residency in ("planes", "mask"):
                yield Case(
                    name=f"{setting}/sign/{residency}", setting=setting, group="gradient", op=f"{op}_{kind}",
                    shape=shape, input=size, dtype="float32", code="sign", residency=residency, batch=size[0],
                    baseline="torch", geometry=geometry, bytes=_held(shape, "sign", residency),
                    operations=size[0] * math.prod(shape) * pixels,
                )  # fmt: skip


def _training_cases() -> Iterator[Case]:
    for code, residency in KEPT[:2] + KEPT[3:4]:
        setting = f"training/resnet18/b32/fp32/{code}"
        for kind in ("step", "pass"):
            yield Case(
                name=f"{setting}/{residency}/{kind}", setting=setting, group="training", op="resnet18", shape=(),
                dtype="float32", input=(32, 3, 32, 32), code=code, residency=residency, batch=32,
                baseline=f"published {kind}", line=f"training-{kind}" if code == "sign" else "",
            )  # fmt: skip
    for residency in ("mask", "planes"):
        yield _plain(f"training/memory/resnet18/{residency}", "training", "training_memory", residency=residency,
                     line="training-memory")  # fmt: skip


def _plain(name: str, group: str, op: str, **fields: Any) -> Case:
    """A case that is about one thing: its own setting, and defaults for what says nothing of it."""
    blank = {"shape": (), "input": (), "dtype": "float32", "code": "sign", "residency": "", "batch": 0}
    return Case(name=name, group=group, op=op, **{"setting": name, "baseline": "", **blank, **fields})


def _format_cases() -> Iterator[Case]:
    yield _plain("select/11.2M", "select", "select", shape=(SCORES,), baseline="torch.sort", other="kthvalue",
                 line="select")  # fmt: skip
    shared = {
        "setting": "generate/resnet50",
        "baseline": "torch.randn",
        "shape": (sum(map(math.prod, weight_shapes("resnet50"))),),
    }
    for code in ("sign", "uniform", "normal"):
        yield _plain(f"generate/resnet50/codes/{code}", "generate", "codes", code=code, **shared)
    yield _plain("generate/resnet50/partition", "generate", "partition", **shared)


def _counted_cases() -> Iterator[Case]:
    yield _plain("ticket/resnet50/load", "ticket", "load_ticket", baseline="torch.load", line="ticket-load")
    yield _plain("ticket/resnet50/size/plain", "ticket", "ticket_size", line="ticket-plain")
    yield _plain("ticket/resnet50/size/affine", "ticket", "ticket_size", line="ticket-affine")
    shape = LINEAR_SHAPES[0]
    for code in ("sign", "uniform", "normal", "constant"):
        for kept in ("disk", *RESIDENT):
            yield _plain(f"footprint/4096x4096/{code}/{kept}", "footprint", "footprint", shape=shape, code=code,
                         residency=kept)  # fmt: skip
    for residency in RESIDENT:
        yield _plain(f"memory/rest/linear/{residency}", "memory", "rest", shape=shape, residency=residency)
        for op in ("linear", "conv2d"):
            for mode in ("forward", "step"):
                yield _plain(f"memory/{mode}/{op}/{residency}", "memory", f"{op} {mode}", residency=residency,
                             shape=shape if op == "linear" else (512, 512, 3, 3),
                             line="" if residency == "dense" else "peak")  # fmt: skip


def _square(channels: int, kernel: int, side: int, groups: int = 1) -> Convolution:
    """A convolution that keeps channels and size."""
    shape = (channels, channels // groups, kernel, kernel)
    return Convolution(shape, (side, side), (1, 1), (kernel // 2, kernel // 2), (1, 1), groups)


def _call_cases() -> Iterator[Case]:
    """Layers so small that a call costs more than its arithmetic."""
    conv = _square(8, 3, 8)
    layers: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...], tuple], ...] = (
        ("linear16", "linear", (16, 16), (16,), ()),
        ("conv8", "conv2d", conv.shape, (8, *conv.size), (*conv[2:],)),
    )
    for label, op, shape, size, geometry in layers:
        for kind, residency in KINDS_OF_CALL.items():
            for batch in CALL_BATCHES:
                for threads in (0, 1):
                    name = f"call/{label}/{kind}/b{batch}" + (f"/t{threads}" if threads else "")
                    line = f"call-{kind}" if kind in ("dense", "train") else "call"
                    yield _plain(name, "call", f"{op} {kind}", shape=shape, input=(batch, *size), geometry=geometry,
                                 residency=residency, batch=batch, threads=threads, baseline="torch",
                                 line=line)  # fmt: skip


# of one layer each, over sizes and kinds
LINEAR_LADDER = (16, 64, 128, 256, 1024, 4096)
CONV_LADDER = (
    _square(8, 3, 8), _square(16, 3, 28), _square(64, 3, 28), _square(64, 1, 56), _square(256, 3, 14),
    _square(512, 3, 7), _square(128, 3, 28, groups=128), _square(960, 3, 7, groups=960),
)  # fmt: skip
TRANSPOSED = Convolution((64, 64, 4, 4), (14, 14), (2, 2), (1, 1), (1, 1), 1)


def _auto_cases() -> Iterator[Case]:
    shared: dict[str, Any] = {"residency": "auto", "baseline": "torch"}
    for width in LINEAR_LADDER:
        for batch in (1, 64):
            yield _plain(f"auto/layer/linear/{width}x{width}/b{batch}", "auto", "linear", shape=(width, width),
                         input=(batch, width), batch=batch, line="auto-layer", **shared)  # fmt: skip
    for op, conv in (*(("conv2d", c) for c in CONV_LADDER), ("conv_transpose2d", TRANSPOSED)):
        grouped = f"/g{conv.groups}" if conv.groups > 1 else ""
        where = f"{op}/{'x'.join(map(str, conv.shape))}/{conv.size[0]}/s{conv.stride[0]}{grouped}"
        for batch in (1, 16):
            yield _plain(f"auto/layer/{where}/b{batch}", "auto", op, shape=conv.shape, geometry=(*conv[2:],),
                         input=(batch, conv.shape[1] * conv.groups, *conv.size), batch=batch, line="auto-layer",
                         **shared)  # fmt: skip
    for name, net in NETS.items():
        for batch in (1, 64):
            yield _plain(f"auto/net/{name}/b{batch}", "auto", name, input=(batch, *net.input), batch=batch,
                         line="auto-net", **shared)  # fmt: skip
    for batch in (1, 64):  # the demo's net
        yield _plain(f"net/digits/b{batch}/planes", "net", "digits", input=(batch, *NETS["digits"].input), batch=batch,
                     line=f"demo-b{batch}", **shared | {"residency": "planes"})  # fmt: skip


def _stored_cases() -> Iterator[Case]:
    """Packed stored weights; the residency names the dtype of their values."""
    shape = LINEAR_SHAPES[0]
    for batch in STORED_BATCHES:
        setting = f"stored/linear/{shape[0]}x{shape[1]}/b{batch}/fp32"
        for values in STORED_VALUES:
            line = "stored-vector" if (batch, values) == (1, "float32") else ""
            yield _plain(f"{setting}/{values}", "stored", "linear", setting=setting, shape=shape, code="stored",
                         input=(batch, shape[1]), residency=values, batch=batch, baseline="torch", line=line,
                         operations=batch * math.prod(shape))  # fmt: skip
    for conv in convolutions("resnet50"):
        for batch in CONV_BATCHES:
            size = "x".join(map(str, conv.shape))
            setting = f"stored/conv2d/{size}/{conv.size[0]}/s{conv.stride[0]}/b{batch}/fp32"
            for values in STORED_VALUES:
                yield _plain(f"{setting}/{values}", "stored", "conv2d", setting=setting, shape=conv.shape,
                             code="stored", input=(batch, conv.shape[1], *conv.size), residency=values, batch=batch,
                             geometry=(*conv[2:],), baseline="torch", line="stored-conv",
                             operations=batch * math.prod(conv.shape) * math.prod(output_size(conv)))  # fmt: skip
    for values in STORED_VALUES:
        yield _plain(f"stored/bytes/4096x4096/{values}", "stored", "stored_bytes", shape=shape, code="stored",
                     residency=values, line="stored-bytes" if values == "float32" else "")  # fmt: skip


def _signs_cases() -> Iterator[Case]:
    """Stored signs; the residency says what a scale is of."""
    conv = _square(256, 3, 14)
    layers: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple, int], ...] = (
        ("linear", LINEAR_SHAPES[0], (1, 4096), (), 1),
        ("linear", LINEAR_SHAPES[0], (64, 4096), (), 1),
        ("conv2d", conv.shape, (1, 256, *conv.size), (*conv[2:],), math.prod(output_size(conv))),
    )
    for op, shape, size, geometry, pixels in layers:
        setting = f"signs/{op}/{'x'.join(map(str, shape))}/b{size[0]}/fp32"
        for scales in ("tensor", "rows"):
            yield _plain(f"{setting}/{scales}", "signs", op, setting=setting, shape=shape, code="signs", input=size,
                         residency=scales, batch=size[0], geometry=geometry, baseline="drawn planes", line="signs",
                         operations=size[0] * math.prod(shape) * pixels)  # fmt: skip


def _jackpot_cases() -> Iterator[Case]:
    """A step of a jackpot's search, over a training step of the dense net that it is searched in."""
    for name, batch, size in (("digits", 64, (1, 8, 8)), ("resnet18", 32, (3, 32, 32))):
        yield _plain(f"jackpot/step/{name}/b{batch}", "jackpot", name, input=(batch, *size), batch=batch, code="stored",
                     residency="dense", baseline="torch", line=f"jackpot-{name}")  # fmt: skip


def _load_cases() -> Iterator[Case]:
    """Process memory after each way to a model: frozen here, loaded from a ticket, searched."""
    for way in ("freeze", "ticket", "search"):
        for residency in RESIDENT[:3]:
            yield _plain(f"load/{way}/{residency}", "load", f"held {way}", shape=HELD_LAYERS, residency=residency,
                         line=f"load-{residency}")  # fmt: skip
    yield _plain("load/freeze/peak", "load", "peak freeze", shape=HELD_LAYERS, line="freeze-peak")
    for residency in RESIDENT[:3]:
        yield _plain(f"load/ticket/peak/{residency}", "load", "peak ticket", shape=HELD_LAYERS, residency=residency,
                     line="load-peak")  # fmt: skip


@cache
def cases() -> tuple[Case, ...]:
    """All cases, those of one setting beside each other."""
    found: list[Case] = []
    for shape in LINEAR_SHAPES:
        for dtype in DTYPES:
            for batch in (*LINEAR_BATCHES, *([512] if shape == LINEAR_SHAPES[0] else [])):
                found += _linear_cases(shape, batch, dtype)
    for conv in resnet_convolutions():
        for batch in CONV_BATCHES:
            found += _conv_cases("resnet", conv, batch, tuple(k for k in KEPT if k[1] != "seed"))
    for conv in mobilenet_convolutions():
        for batch in CONV_BATCHES:
            found += _conv_cases("mobilenet", conv, batch, KEPT[:2])
    found += [*_model_cases(), *_gradient_cases(), *_training_cases(), *_format_cases(), *_counted_cases()]
    return (
        *found,
        *_call_cases(),
        *_auto_cases(),
        *_load_cases(),
        *_stored_cases(),
        *_signs_cases(),
        *_jackpot_cases(),
        *_whole_cases(),
    )
