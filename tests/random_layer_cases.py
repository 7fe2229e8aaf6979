"""Layers drawn by number: their kinds, sizes, settings, values and memory, the same for the same seed everywhere."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import product

import torch
from helpers import CODES
from torch import Tensor

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.ops import conv_output_size, conv_transpose_output_size
from frozen_kernels.tensor import all_kept

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
KINDS = ("linear", *CONVOLUTIONS, "depthwise", *TRANSPOSED)
# a layer's number gives its place here, so as many layers in a row hold every kind with every code and dtype
COMBINATIONS = (
    *product(KINDS, CODES, DTYPES),
    *product(("embedding",), CODES, (None,)),
    *product(KINDS, (fmt.STORED,), (None,)),
)

LARGEST = 200
EDGES = (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160, 192, LARGEST)
VALUES = {"normal": 50, "after_relu": 10, "outliers": 15, "tiny": 5, "wide": 5, "infinite": 15}  # in percent
LAYOUTS = {"contiguous": 40, "channels_last": 25, "transposed": 10, "sliced": 15, "expanded": 10}


@dataclass(frozen=True)
class Layer:
    """`op` of torch.nn.functional; `shape` of the weight, `size` of the input (of an embedding: of the indices)."""

    seed: str
    kind: str
    op: str
    code: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    gain: bool = False
    relu: bool = False
    prune_ratio: float = 0.0
    lock_ratio: float = 1.0
    kept: float = 0.5  # of stored weights
    values: str = "float32"  # of stored weights
    scale: float = 1.0
    scores: torch.dtype = torch.float32
    x_values: str = "normal"
    grad_values: str = "normal"
    x_layout: str = "contiguous"
    grad_layout: str = "contiguous"

    @property
    def transposed(self) -> bool:
        return self.op.startswith("conv_transpose")

    @property
    def options(self) -> dict:
        """The arguments behind the bias of torch's function and of ours."""
        if not self.stride:
            return {}
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return options | ({"output_padding": self.output_padding} if self.transposed else {})

    @property
    def result_size(self) -> tuple[int, ...]:
        if self.op == "embedding":
            return (*self.size, self.shape[1])
        if self.op == "linear":
            return (*self.size[:-1], self.shape[0])
        steps = (self.stride, self.padding)
        if self.transposed:
            rest = (self.output_padding, self.dilation, self.groups)
            return tuple(conv_transpose_output_size(self.size, self.shape, *steps, *rest))
        return tuple(conv_output_size(self.size, self.shape, *steps, self.dilation))

    @property
    def outputs(self) -> int:
        """Channels of the result."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    @property
    def work(self) -> int:
        """Products of a forward, or what moving its tensors costs, if that is more."""
        result = self.result_size
        narrow = math.prod(self.size) if self.transposed else math.prod(result)
        return max(narrow * math.prod(self.shape[1:]), 32 * math.prod(self.size), 32 * math.prod(result))


def _one_of(chance: random.Random, shares: dict[str, int]) -> str:
    return chance.choices(list(shares), list(shares.values()))[0]


def _extent(chance: random.Random) -> int:
    """1 to 200: small ones as often as large ones, and those around the widths of kernels."""
    return chance.choice(EDGES) if chance.random() < 0.4 else round(LARGEST ** chance.random())


def _batch(chance: random.Random) -> int:
    if chance.random() < 0.03:
        return 0
    return chance.randint(1, 16) if chance.random() < 0.6 else _extent(chance)


def _scale(chance: random.Random, code: str, dtype: torch.dtype, cols: int) -> float:
    """Near Kaiming's, with an effective weight that every dtype holds exactly."""
    scale = 2.0 ** round(math.log2(fmt.scale_of(code, fmt.kaiming_sigma(cols))))
    if code not in ("sign", "constant") or chance.random() < 0.5:
        return scale
    if dtype == torch.float32:
        return float(torch.tensor(scale * (0.5 + chance.random())))
    return scale * chance.randint(128, 255) / 128


def _linear(chance: random.Random) -> dict:
    rows, cols, batch = _extent(chance), _extent(chance), _batch(chance)
    leading = chance.choices(((batch,), (2, 1, batch), ()), (85, 10, 5))[0]
    return {"op": "linear", "shape": (rows, cols), "size": (*leading, cols)}


def _channels(chance: random.Random, kind: str) -> tuple[int, int, int]:
    """Channels of rows and columns of a group, and groups."""
    if kind == "depthwise":
        return chance.choice((1, 1, 1, 2, 3)), 1, max(2, _extent(chance))
    rows, cols = _extent(chance), _extent(chance)
    groups = chance.choice((1, 1, 1, 1, chance.randint(2, 8)))
    return max(1, rows // groups), max(1, cols // groups), groups


def _convolution(chance: random.Random, kind: str) -> dict:
    op = chance.choices((*CONVOLUTIONS, *TRANSPOSED), (2, 8, 1, 1, 2, 1))[0] if kind == "depthwise" else kind
    dims, transposed = int(op[-2]), op.startswith("conv_transpose")
    rows, cols, groups = _channels(chance, kind)
    if chance.random() < 0.25:
        taps = (1,) * dims
    else:
        taps = tuple(chance.choice((1, 2, 3, 3, 3, 4, 5, 7) if dims < 3 else (1, 2, 3, 3)) for _ in range(dims))
    stride = tuple(chance.choice((1, 1, 1, 2, 3)) for _ in taps)
    dilation = tuple(chance.choice((1, 1, 1, 2, 3)) for _ in taps)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    # half of all layers keep the size, the others have any padding up to one where taps read nothing else
    padding = tuple(r // 2 if chance.random() < 0.5 else chance.randint(0, min(r, 8)) for r in reach)
    if transposed:
        padding = tuple(min(p, (r - 1) // 2) for p, r in zip(padding, reach, strict=True))
        extra = tuple(chance.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        smallest = [1] * dims
    else:
        extra = ()
        smallest = [max(1, r - 2 * p) for p, r in zip(padding, reach, strict=True)]
    few_pixels = chance.random() < 0.15
    spatial = tuple(s if few_pixels else max(s, _extent(chance)) for s in smallest)
    channels = rows * groups if transposed else cols * groups
    return {
        "op": op, "shape": (rows * groups, cols, *taps), "size": (_batch(chance), channels, *spatial), "stride": stride,
        "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups,
    }  # fmt: skip


def _smaller(layer: Layer, chance: random.Random) -> Layer | None:
    """With one of batch and places halved, or None where each is 1 or as small as the taps allow."""
    places = [i for i, n in enumerate(layer.size) if n > 1 and (i != 1 or not layer.stride)]
    chance.shuffle(places)
    for place in sorted(places, key=lambda i: layer.size[i] < 8):
        if layer.op == "linear" and place == len(layer.size) - 1:
            continue
        size = tuple(n // 2 if i == place else n for i, n in enumerate(layer.size))
        found = replace(layer, size=size)
        if min(found.result_size[1:], default=1) > 0:
            return found
    return None


def _fewer_channels(layer: Layer) -> Layer:
    """With the channels of a group halved, or without groups."""
    rows, cols, groups = layer.shape[0] // layer.groups, layer.shape[1], layer.groups
    if max(rows, cols) > 1:
        rows, cols = max(1, rows // 2), max(1, cols // 2)
    else:
        groups = max(1, groups // 2)
    if layer.op == "linear":
        return replace(layer, shape=(rows, cols), size=(*layer.size[:-1], cols))
    size = (layer.size[0], (rows if layer.transposed else cols) * groups, *layer.size[2:])
    return replace(layer, shape=(rows * groups, cols, *layer.shape[2:]), size=size, groups=groups)


def draw_layer(number: int, seed: int, most_work: int) -> Layer:
    """The layer of that number: of its kind, code and dtype, with at most so many products in a forward."""
    kind, code, dtype = COMBINATIONS[number % len(COMBINATIONS)]
    chance = random.Random(f"{seed} {number} {most_work}")
    dtype = chance.choice(DTYPES) if dtype is None else dtype
    if kind == "embedding":
        shape, size = (_extent(chance), _extent(chance)), chance.choice(((_batch(chance),), (3, _batch(chance)), ()))
        sizes = {"op": "embedding", "shape": shape, "size": size}
    else:
        sizes = _linear(chance) if kind == "linear" else _convolution(chance, kind)
    layer = Layer(f"{seed} {number}", kind, code=code, dtype=dtype, **sizes)
    most_work >>= chance.choice((0, 0, 1, 2, 4, 6))
    while layer.work > most_work or math.prod(layer.shape) > most_work:
        smaller = _smaller(layer, chance) if math.prod(layer.shape) * 4 <= most_work else None
        layer = _fewer_channels(layer) if smaller is None else smaller
    pruned = chance.choice((0.0, chance.random()))
    cols = math.prod(layer.shape[1:])
    values = {k: v for k, v in VALUES.items() if k != "infinite" or code != fmt.STORED}
    return replace(
        layer,
        bias=chance.random() < 0.5,
        gain=chance.random() < 0.4,
        relu=chance.random() < 0.3,
        prune_ratio=pruned,
        lock_ratio=chance.choice((0.0, 0.3, 1.0)) * (1 - pruned),
        kept=chance.choice((0.02, 0.1, 0.5, 1.0)),
        values=chance.choice(tuple(fmt.VALUE_DTYPES)),
        scale=1.0 if code == fmt.STORED else _scale(chance, code, dtype, cols),
        scores=chance.choice((torch.float32, torch.float32, torch.bfloat16)),
        x_values=_one_of(chance, values),
        grad_values=_one_of(chance, values),
        x_layout=_one_of(chance, LAYOUTS),
        grad_layout=_one_of(chance, LAYOUTS),
    )


def make_weight(layer: Layer) -> fk.FrozenTensor:
    """The frozen tensor with random bits and scores, in planes; a stored one packed."""
    chance = torch.Generator().manual_seed(random.Random(f"{layer.seed} weight").getrandbits(63))
    if layer.code == fmt.STORED:
        return _stored_weight(layer, chance)
    frozen = fk.FrozenTensor.create(
        layer.shape, seed=random.Random(layer.seed).getrandbits(63), stream=1, code=layer.code, scale=layer.scale,
        prune_ratio=layer.prune_ratio, lock_ratio=layer.lock_ratio, residency="seed",
    )  # fmt: skip
    assert frozen.offsets is not None
    free = int(frozen.offsets[-1])
    supermask = all_kept(free)
    supermask &= torch.randint(0, 256, supermask.shape, dtype=torch.uint8, generator=chance)
    scores = torch.randn(free, generator=chance).to(layer.scores)
    return frozen._replace(supermask=supermask).hold("planes", with_offsets=True)._replace(scores=scores)


def _stored_weight(layer: Layer, chance: torch.Generator) -> fk.FrozenTensor:
    """Values that the layer's dtype holds exactly, so that torch's weight is the same."""
    values = torch.randn(layer.shape, generator=chance).to(layer.dtype).float()
    keep = torch.rand(layer.shape, generator=chance) < layer.kept
    frozen = fk.FrozenTensor.stored(values, keep, values=layer.values)
    if layer.values == "int8":
        scale = 2.0 ** torch.randint(-8, -4, (layer.shape[0],), generator=chance)
        frozen = frozen._replace(row_scale=scale)
    return frozen


def fill(size: tuple[int, ...], values: str, layout: str, dtype: torch.dtype, chance: torch.Generator) -> Tensor:
    """Normal values; some layers have also what is hard to sum. Integers where they repeat.

    A chain of equal terms rounds in the same direction again and again, which no order of a sum is to blame for.
    """
    x = torch.randn(size, generator=chance)
    if layout == "expanded":
        x = (2 * x).round()
        values = "normal" if values in ("tiny", "wide") else values
    places = torch.randint(0, max(1, x.numel()), (1 + x.numel() // 1000,), generator=chance)
    half = dtype == torch.float16
    if values == "after_relu":
        x = x.relu()
    elif values == "tiny":
        x = x * (1e-6 if half else 1e-40)
    elif values == "wide":
        low, high = (-4, 1) if half else (-12, 12)
        x = x * 10 ** (low + (high - low) * torch.rand(size, generator=chance))
    elif x.numel() and values == "outliers":
        x.view(-1)[places] = torch.where(places % 2 == 0, 1e3, 1e2 if half else 1e5)
    elif x.numel() and values == "infinite":
        x.view(-1)[places] = torch.tensor([math.inf, -math.inf, math.nan])[places % 3]
    return x.to(dtype)


def lay_out(x: Tensor, layout: str, chance: torch.Generator) -> Tensor:
    """The values in other memory; what lies between the elements of a view is NaN, and expanded ones repeat."""
    if x.dim() == 0 or layout == "contiguous":
        return x
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    dim = int(torch.randint(0, x.dim(), (), generator=chance))
    if layout == "expanded":
        return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape)
    spaced = x.new_full([2 * n + 1 if i == dim else n for i, n in enumerate(x.shape)], math.nan)
    view = spaced[(slice(None),) * dim + (slice(1, None, 2),)]
    return view.copy_(x)


@dataclass
class Tensors:
    """What a layer is called with."""

    x: Tensor
    grad: Tensor
    bias: Tensor | None
    gain: Tensor | None


def make_tensors(layer: Layer, draw: int) -> Tensors:
    """Inputs and gradients of one draw; results of many draws tell small layers' errors."""
    chance = torch.Generator().manual_seed(random.Random(f"{layer.seed} {draw}").getrandbits(63))
    if layer.op == "embedding":
        x = torch.randint(0, layer.shape[0], layer.size, generator=chance)
    else:
        x = lay_out(fill(layer.size, layer.x_values, layer.x_layout, layer.dtype, chance), layer.x_layout, chance)
    grad = lay_out(
        fill(layer.result_size, layer.grad_values, layer.grad_layout, layer.dtype, chance), layer.grad_layout, chance
    )
    bias = torch.randn(layer.outputs, generator=chance).to(layer.dtype) if layer.bias else None
    gain = None
    if layer.gain:  # powers of two: folded into torch's weight they round nothing
        gain = torch.tensor([1.0, -2.0, 0.5, -0.25])[torch.randint(0, 4, (layer.outputs,), generator=chance)]
    return Tensors(x, grad, bias, gain)
