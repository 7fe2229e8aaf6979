"""The targets that cases count towards: what is held against which figure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

FASTER, LONGER = "x", "x the time"


@dataclass(frozen=True)
class Target:
    """A line of the table of targets, or one half of it: a statistic over the cases that name the line.

    `unit`: `FASTER`, how many times as fast as the baseline; `LONGER`, how many times as long a call takes; else the
    unit of what is counted. `avx2`: the goal where the kernels and torch are held to AVX2, if another; 0 for none.
    """

    line: str
    text: str
    statistic: str  # minimum, geomean or maximum
    goal: float
    unit: str = FASTER
    avx2: float | None = None

    def goal_on(self, isa: str) -> float | None:
        """The goal on an instruction set, None where there is none."""
        goal = self.avx2 if isa == "avx2" and self.avx2 is not None else self.goal
        return goal or None

    def value(self, values: list[float]) -> float:
        if self.statistic == "geomean":
            return statistics.geometric_mean(values)
        return min(values) if self.statistic == "minimum" else max(values)

    def met(self, value: float, isa: str = "") -> bool:
        """Ratios are to be reached, sizes and times not to be passed."""
        goal = self.goal_on(isa)
        return goal is None or (value <= goal if self.statistic == "maximum" else value >= goal)


TARGETS = (
    Target("vector-planes", "linear 4096 x 4096, batch 1, sign, `planes`, over torch fp32", "minimum", 15.0, avx2=8.0),
    Target("vector-planes-bf16", "the same over torch bf16", "minimum", 8.0, avx2=0),
    Target("vector-mask", "linear 4096 x 4096, batch 1, sign, `mask`, over torch fp32", "minimum", 10.0, avx2=6.0),
    Target("vector-seed", "linear 4096 x 4096, batch 1, sign, `seed`, over torch fp32", "minimum", 1.5, avx2=0),
    Target("vector-seed-8", "the same with 8 threshold bits", "minimum", 2.5, avx2=0),
    Target("few-planes-4", "linear 4096 x 4096, batch 4, sign, `planes`, over torch fp32", "minimum", 6.0, avx2=4.0),
    Target("few-planes-16", "the same, batch 16", "minimum", 4.0, avx2=2.0),
    Target(
        "vector-bytes",
        "linear 4096 x 4096, batch 1, uniform or normal, `mask`",
        "minimum",
        1.9,
        avx2=1.0,
    ),
    Target("batch-planes", "linear, batch 64 to 512, sign, `planes`, over torch fp32", "minimum", 2.2, avx2=1.5),
    Target("batch-planes-bf16", "linear, batch 64 to 512, sign, `planes`, over torch bf16", "minimum", 1.1, avx2=0),
    Target("conv-planes", "conv2d of ResNet-18 and -50, sign, `planes`, over torch fp32", "geomean", 2.0, avx2=1.05),
    Target("conv-planes", "the same, the slowest layer", "minimum", 1.0, avx2=0),
    Target("conv-mask", "conv2d of ResNet-18 and -50, sign, `mask`, over torch fp32", "geomean", 1.9, avx2=1.05),
    Target("conv-bytes", "conv2d of ResNet-18 and -50, uniform or normal, `mask`", "geomean", 0.95, avx2=0.9),
    Target("mobilenet", "layers of MobileNetV2, sign, `planes`, over torch fp32", "geomean", 1.0, avx2=0),
    Target("model", "ResNet-18 and -50, sign, `auto`, over dense torch", "minimum", 1.9, avx2=1.1),
    Target("select", "threshold over 11.2 M scores, over torch.sort", "minimum", 25.0),
    Target(
        "training-step",
        "step of a search, ResNet-18 on 32x32 images, batch 32, sign, over the published method",
        "minimum",
        3.0,
        avx2=2.0,
    ),
    Target("training-pass", "forward and backward of it alone", "minimum", 1.3, avx2=1.0),
    Target(
        "training-memory", "memory of the step but for activations, bytes per weight", "maximum", 4.5, "bytes/weight"
    ),
    Target("ticket-load", "loading a ticket of ResNet-50, seconds", "maximum", 0.1, "s"),
    Target("ticket-plain", "ticket of ResNet-50 without affine batch norm, MB", "maximum", 1.22, "MB"),
    Target("ticket-affine", "ticket of ResNet-50 with affine batch norm, MB", "maximum", 1.44, "MB"),
    Target("peak", "rise of process memory beyond activations, of the dense weight", "maximum", 1 / 8, "of dense"),
    Target("call", "call without gradients of linear 16 x 16 and conv2d 8 to 8 on 8 x 8", "maximum", 2.0, LONGER),
    Target("call-dense", "the same in `dense`", "maximum", 1.2, LONGER),
    Target("call-train", "the same with backward, to scores and not to the weight", "maximum", 2.5, LONGER),
    Target("auto-layer", "one layer in `auto`, over dense torch", "minimum", 0.97),
    Target("auto-net", "a small net in `auto`, over dense torch", "minimum", 0.97),
    Target("demo-b1", "the demo's net, 389,600 weights, `planes`, batch 1, over dense torch", "minimum", 1.0, avx2=0),
    Target("demo-b64", "the same, batch 64", "minimum", 1.5, avx2=0),
    Target("load-seed", "process memory of 24 layers 4096 x 4096 in `seed`", "maximum", 0.6, "bits/weight"),
    Target("load-mask", "the same in `mask`", "maximum", 1.2, "bits/weight"),
    Target("load-planes", "the same in `planes`", "maximum", 2.3, "bits/weight"),
    Target("freeze-peak", "peak of process memory in `freeze_`, of the dense model", "maximum", 1.05, "of dense"),
    Target(
        "stored-vector",
        "linear 4096 x 4096, batch 1, stored at 90 %, `packed`",
        "minimum",
        4.0,
        avx2=2.0,
    ),
    Target("stored-conv", "conv2d of ResNet-50, stored at 90 %, `packed`, over torch fp32", "geomean", 1.0),
    Target("signs", "stored signs over drawn ones, both `planes`; the slowest of linear and conv2d", "minimum", 0.95),
    Target("stored-bytes", "bytes of a stored weight at 90 %, fp32 values", "maximum", 0.55, "bytes/weight"),
    Target("jackpot-digits", "step of a jackpot, a net for digits, over a dense training step", "maximum", 1.2, LONGER),
    Target("jackpot-resnet18", "the same, ResNet-18 on 32x32 images, batch 32", "maximum", 1.1, LONGER),
    Target("load-peak", "peak of process memory in `load_ticket`, of what stays", "maximum", 1.5, "of what stays"),
)
