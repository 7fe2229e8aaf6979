"""What a model takes: bytes on disk, resident bytes, and the measured peak of a forward."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, has_sharded, refuse_lazy, unwrapped
from ..process import release_memory
from ..text import table
from ..tickets.gain import unsaved_part
from ..tickets.model import save_ticket

FORWARDS = 3  # the kernel counts pages in batches: the median of so many peaks


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind tensors, each once: a view counts the whole storage that it keeps alive."""
    found: dict[tuple, int] = {}
    for t in tensors:
        if t is not None:
            storage = t.untyped_storage()
            key = (str(t.device), storage.data_ptr()) if storage.data_ptr() else (str(t.device), id(t))
            found[key] = storage.nbytes()
    return sum(found.values())


def _own(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _frozen_state(layer: FrozenLayer) -> list[Tensor]:
    """Everything that a frozen layer holds but its bias and gain."""
    return [t for t in _own(layer) if t is not layer.bias and t is not layer.gain]


@dataclass
class LayerFootprint:
    """One frozen layer; bytes but for `weights` and `free`. `resident` includes `scores`.

    `shared`: an earlier layer has the same weight, and its bytes are counted there.
    """

    name: str
    kind: str
    residency: str
    weights: int
    free: int
    disk: int
    resident: int
    scores: int
    dense: int
    shared: bool


@dataclass
class Peak:
    """Rise of memory during one forward without gradients; `bytes` is None where it cannot be measured.

    `method` says how it was measured, or why it was not.
    """

    bytes: int | None
    method: str


@dataclass
class Footprint:
    """Bytes of a model; `print` it, or `.to_json()`.

    `disk`: supermasks, ordinary tensors and metadata of the ticket that `save_ticket` writes (metadata None on the meta
    device, and for a model with a folded ReLU, which no ticket holds). `resident`: storages of all parameters and
    buffers now held, those of frozen weights and the others. `dense`: the same model with dense weights. Bits are per
    frozen weight. `layers` has the frozen ones by name, `ordinary_disk` and `ordinary_resident` count the other
    tensors, `peak` is that of a forward. A gain is part of the weight on disk, and resident among the others. On the
    meta device, where nobody knows a mask, all weights that are not pruned count as kept.
    """

    layers: list[LayerFootprint]
    ordinary_disk: int
    ordinary_resident: int
    metadata: int | None
    peak: Peak

    @property
    def weights(self) -> int:
        """Frozen weights in all, shared ones once."""
        return sum(layer.weights for layer in self.layers if not layer.shared)

    def totals(self) -> dict[str, dict[str, int | None]]:
        """Bytes by kind: frozen, ordinary, metadata where there is any, and total."""
        disk, resident, dense = (sum(getattr(x, kind) for x in self.layers) for kind in ("disk", "resident", "dense"))
        total = None if self.metadata is None else disk + self.ordinary_disk + self.metadata
        return {
            "disk": {"frozen": disk, "ordinary": self.ordinary_disk, "metadata": self.metadata, "total": total},
            "resident": {
                "frozen": resident,
                "ordinary": self.ordinary_resident,
                "total": resident + self.ordinary_resident,
            },
            "dense": {
                "frozen": dense,
                "ordinary": self.ordinary_resident,
                "total": dense + self.ordinary_resident,
            },
        }

    def bits(self, kind: str) -> float | None:
        """Bits per frozen weight of a `kind`, `disk`, `resident` or `dense`, without ordinary tensors and metadata."""
        frozen = self.totals()[kind]["frozen"]
        return 8 * frozen / self.weights if self.weights and frozen is not None else None

    def to_json(self, **options: Any) -> str:
        """All figures as JSON; `options` go to `json.dumps`."""
        values: dict[str, Any] = {"weights": self.weights, **self.totals()}
        values["bits_per_weight"] = {kind: self.bits(kind) for kind in ("disk", "resident", "dense")}
        values["peak"] = asdict(self.peak)
        values["layers"] = [asdict(layer) for layer in self.layers]
        return json.dumps(values, **options)

    def __str__(self) -> str:
        head = ("layer", "residency", "weights", "on disk", "resident", "dense", "bits resident")
        rows: list[tuple[str, ...]] = [
            (
                x.name, f"{x.kind} {x.residency}", f"{x.weights:,}", f"{x.disk:,}", f"{x.resident:,}", f"{x.dense:,}",
                f"{8 * x.resident / x.weights:.3f}" if x.weights else "",
            )
            for x in self.layers
        ]  # fmt: skip
        sums = self.totals()

        def row(label: str, kind: str) -> tuple[str, ...]:
            cells = [sums[where].get(kind) for where in ("disk", "resident", "dense")]
            return (label, "", "", *("" if c is None else f"{c:,}" for c in cells), "")

        frozen = list(row("frozen weights", "frozen"))
        bits = self.bits("resident")
        frozen[2], frozen[6] = f"{self.weights:,}", "" if bits is None else f"{bits:.3f}"
        rows += [tuple(frozen), row("ordinary tensors", "ordinary"), row("metadata", "metadata"), row("total", "total")]
        lines = [table(head, rows)]
        per_weight = self.bits("disk")
        if per_weight is not None:
            lines.append(f"bytes; {per_weight:.3f} bits on disk per frozen weight, ordinary tensors and metadata apart")
        scores = sum(x.scores for x in self.layers)
        if scores:
            lines.append(f"resident includes {scores:,} bytes of scores; finalize_ drops them")
        peak = f"{self.peak.bytes:,} bytes ({self.peak.method})" if self.peak.bytes is not None else self.peak.method
        lines.append(f"peak of a forward: {peak}")
        return "\n".join(lines)


def _beside_the_supermask(layer: FrozenLayer) -> int:
    """Bytes of a ticket for values or signs and the scales of their rows, coats after the first, generations, gain."""
    own = 0 if layer.generations is None else layer.generations.numel()
    own += 0 if layer.gain is None else 4 * layer.gain.numel()  # float32 there, whatever it is here
    own += 0 if layer.row_scale is None else layer.row_scale.numel() * layer.row_scale.element_size()
    kept = _kept(layer)
    own += sum(-(-coat // 8) for coat in kept[:-1])
    if layer.signed:
        return own + -(-kept[0] // 8)
    return own if layer.values is None else own + kept[0] * layer.values.element_size()


def _kept(layer: FrozenLayer) -> list[int]:
    """How many weights each coat keeps, at most on the meta device."""
    if layer.device.type != "meta":
        return layer.coat_kept()
    if layer.values is not None and layer.packed:
        return [layer.values.numel()]
    return [layer.rows * layer.cols - layer.pruned] * (1 if layer.coats is None else 1 + layer.coats.shape[0])


def _ordinary(model: nn.Module, layers: dict[str, FrozenLayer]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that are not part of a frozen weight: those that a ticket stores, and all that are held."""
    frozen = {id(t) for layer in layers.values() for t in _frozen_state(layer)}
    held = [t for module in model.modules() for t in _own(module) if id(t) not in frozen]
    stored = []
    for module in model.modules():
        persistent = [t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set]
        gain = module.gain if isinstance(module, FrozenLayer) else None
        parts = [t for t in (*module._parameters.values(), *persistent) if t is not None and t is not gain]
        stored += [t for t in parts if id(t) not in frozen]
    return stored, held


def _logical_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the values themselves, a tensor reached twice once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _ticket_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        save_ticket(model, path)
        return path.stat().st_size


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def trim() -> None:
    """Give freed heap back to the system, so that memory used again shows as a rise."""
    gc.collect()
    release_memory()


def reset_peak() -> bool:
    """Lower the kernel's high-water mark of this process (VmHWM) to what is resident now; False where it refuses."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        return False
    resident, peak = _status("VmRSS"), _status("VmHWM")
    return resident is not None and peak is not None and peak - resident < 1 << 20


def _lifetime_peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rise(run: Callable[[], object]) -> int:
    """Bytes by which a call raises the kernel's high-water mark above what is resident."""
    release_memory()
    reset_peak()
    before = _status("VmRSS")
    run()
    after = _status("VmHWM")
    assert before is not None and after is not None
    return max(after - before, 0)


def _process_peak(run: Callable[[], object]) -> Peak:
    run()
    trim()
    if reset_peak():
        rises = sorted(_rise(run) for _ in range(FORWARDS))
        return Peak(rises[FORWARDS // 2], f"process memory, VmHWM after clear_refs, median of {FORWARDS} forwards")
    before = _status("VmRSS")
    if before is None:
        return Peak(None, f"not measured: {sys.platform} does not tell the resident memory of a process")
    lifetime = _lifetime_peak()
    run()
    after = _lifetime_peak()
    if after > lifetime:
        return Peak(after - before, "process memory, ru_maxrss")
    return Peak(None, "not measured: /proc/self/clear_refs is refused, and an earlier peak of the process was higher")


def forward_peak(model: nn.Module, sample_input: Any) -> Peak:
    if sample_input is None:
        return Peak(None, "not measured: no sample_input")
    args = sample_input if isinstance(sample_input, tuple) else (sample_input,)
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len({d.type for d in devices}) > 1:
        return Peak(None, f"not measured: the model is spread over {', '.join(sorted(map(str, devices)))}")
    device = next(iter(devices), torch.device("cpu"))
    if device.type not in ("cpu", "cuda"):
        return Peak(None, f"not measured on device type {device.type!r}")

    def run() -> None:
        with torch.no_grad():
            model(*args)

    was_training = [m for m in model.modules() if m.training]
    model.eval()  # a measurement must not move running statistics
    try:
        if device.type == "cpu":
            return _process_peak(run)
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - before, "CUDA allocator")
    finally:
        for module in was_training:
            module.training = True


def footprint(model: nn.Module, sample_input: Any = None) -> Footprint:
    """Bytes and bits per weight of a model: on disk, resident, dense and, with `sample_input`, the peak of a forward.

    Every figure but the dense one is counted or measured on the model as it stands. On a CPU the peak is the rise of
    the process's memory during a forward in eval mode without gradients, the median of three, after a first one that
    warms up and after freed heap went back to the system: by the kernel's own high-water mark (VmHWM, reset through
    `/proc/self/clear_refs`), else by `ru_maxrss` where this forward is the process's highest point, else None with
    the reason. The kernel counts pages in batches: differences below about half a megabyte are noise, and memory used
    by other threads meanwhile counts too. On CUDA it is the allocator's peak over what was allocated before.

    Args:
        model: any module; without frozen layers `metadata` is None and there are no bits per weight. Of a model in a
            wrapper (`torch.compile`, `DataParallel`, `DistributedDataParallel`) the one inside is counted, by its own
            names, and the peak is that of a forward of the whole.
        sample_input: the argument of a forward, or a tuple of them.

    Raises:
        ValueError: `fully_shard` holds the model's parameters, or a lazy layer has none yet.
    """
    if has_sharded(model):
        raise ValueError("model: spread over processes by fully_shard; measure one that loaded its ticket")
    refuse_lazy(model)
    whole, model = model, unwrapped(model)
    layers = frozen_layers(model)
    seen: set[tuple[object, ...]] = set()
    rows = []
    counted: set[int] = set()
    for name, layer in layers.items():
        state = [t for t in _frozen_state(layer) if id(t) not in counted]
        counted.update(id(t) for t in state)
        weights, free = layer.rows * layer.cols, layer.free
        shared = layer.identity in seen
        scores = storage_bytes([layer.scores]) if any(t is layer.scores for t in state) else 0
        rows.append(
            LayerFootprint(
                name=name or type(layer).__name__,
                kind=type(layer).__name__,
                residency=layer.residency,
                weights=weights,
                free=free,
                disk=0 if shared else -(-free // 8) + _beside_the_supermask(layer),
                resident=storage_bytes(state),
                scores=scores,
                dense=0 if shared else weights * layer.dtype.itemsize,
                shared=shared,
            )
        )
        seen.add(layer.identity)
    stored, held = _ordinary(model, layers)
    ordinary_disk = _logical_bytes(stored)
    metadata = None
    on_meta = any(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
    if layers and not on_meta and all(unsaved_part(layer) is None for layer in layers.values()):
        metadata = _ticket_bytes(model) - ordinary_disk - sum(row.disk for row in rows)
    return Footprint(rows, ordinary_disk, storage_bytes(held), metadata, forward_peak(whole, sample_input))
