"""A root module that reads its children's weights without calling them is refused like a nested one."""

import pytest
from torch import nn

import frozen_kernels as fk


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(m)], ids=["root", "nested"])
def test_transformer_layer_is_refused(wrap):
    with pytest.raises(ValueError, match="reads its weight without calling it"):
        fk.freeze_(wrap(nn.TransformerEncoderLayer(4, 1, 4)))
