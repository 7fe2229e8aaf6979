"""Pre-trained weights from a file of the user's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from frozen_kernels.importers.source import checkpoint, read


def load_weights_(model: nn.Module, path: Path) -> None:
    """Give a model the state in a file by `torch.save`, whose code never runs, or of safetensors.

    The state may lie under `state_dict` or `model`, with `module.` before its names. Where it has other names than the
    model, as torchvision's, its entries are taken in the order of the file, which must have the model's shapes. A 1x1
    convolution can be the classifier.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or of another model: the first entry that differs is named with both shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"jackpot.weights: {path} is no file; train dense weights first, or give your own")
    own = _without_counters(model.state_dict())
    try:
        state = _without_counters(checkpoint(read(path), set(own)).state)
        state = state if state.keys() == own.keys() else _by_order(path, state, own)
        for name, tensor in own.items():
            if state[name].shape not in (tensor.shape, (*tensor.shape, 1, 1)):
                raise ValueError(f"{name} is {list(state[name].shape)}, the model's {list(tensor.shape)}")
    except ValueError as why:
        raise ValueError(f"jackpot.weights: {path}: {why}") from None
    model.load_state_dict({name: state[name].reshape(tensor.shape) for name, tensor in own.items()}, strict=False)


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files of old torch versions have no counters of batch norm, which nothing here reads."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _by_order(path: Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries of other names under the model's. Safetensors files keep no order."""
    if len(state) != len(own) or path.suffix == ".safetensors":
        differ = sorted(set(state) ^ set(own))[0]
        raise ValueError(f"{len(state)} entries, the model has {len(own)}; {differ!r} is in one of them only")
    return dict(zip(own, state.values(), strict=True))
