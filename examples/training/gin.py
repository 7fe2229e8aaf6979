"""GIN for node classification, as the frozen-network paper trains it on OGBN-Arxiv (Xu et al. 2019)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")

HIDDEN, LAYERS = 386, 4


def undirected(edges: Tensor, nodes: int) -> Tensor:
    """Edges in both directions, each once, ordered by source and then target.

    Args:
        edges: int64 [2, E], sources and targets.
        nodes: how many nodes there are.

    Returns:
        int64 [2, E'].
    """
    both = torch.cat([edges, edges.flip(0)], dim=1)
    keys = torch.unique(both[0] * nodes + both[1])  # sorted
    return torch.stack([keys // nodes, keys % nodes])


class Layer(nn.Module):
    """`relu(norm(linear(h + mean of h over the neighbours)))`; no bias, batch norm without affine parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, affine=False)

    def forward(self, h: Tensor, adjacency: Tensor, degree: Tensor) -> Tensor:
        # sparse products have no bfloat16 everywhere, and a mean of many neighbours wants the digits
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            h = h + (adjacency @ h) / degree
        return torch.relu(self.norm(self.linear(h)))


class GIN(nn.Module):
    """Mean aggregation with eps 0; the output is `(linear(h of the last layer but one) + h of the last layer) / 2`.

    `attach` gives it the graph, which is no part of its state: a ticket or state dict holds weights only.

    Args:
        features: width of a node's features.
        classes: outputs per node, and the width of the last layer.
        hidden: width of the other layers.
        layers: how many there are, at least 2.
    """

    def __init__(self, features: int, classes: int, hidden: int = HIDDEN, layers: int = LAYERS) -> None:
        super().__init__()
        widths = [features, *[hidden] * (layers - 1), classes]
        self.layers = nn.ModuleList(map(Layer, widths[:-1], widths[1:]))
        self.prediction = nn.Linear(hidden, classes, bias=False)
        for name in ("starts", "sources", "degree"):
            self.register_buffer(name, None, persistent=False)

    def attach(self, edges: Tensor, nodes: int) -> None:
        """Use this graph: int64 [2, E] of sources and targets; a node hears from the sources of its incoming edges.

        The graph stays on the edges' device until the model moves. ValueError for edges of another shape or beyond
        the nodes.
        """
        if edges.dim() != 2 or len(edges) != 2:
            raise ValueError(f"edges: two rows, sources and targets, got shape {list(edges.shape)}")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
            found = f"{int(edges.min())} to {int(edges.max())}"
            raise ValueError(f"edges: nodes from 0 to {nodes - 1}, got {found}")
        order = torch.argsort(edges[1] * nodes + edges[0])
        counts = torch.bincount(edges[1], minlength=nodes)
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.sources = edges[0][order]
        # a node without neighbours has a sum of 0, and so a mean of 0
        self.degree = counts.clamp(min=1).float()[:, None]

    def forward(self, h: Tensor) -> Tensor:
        """Float32 [nodes, features] to [nodes, classes]; RuntimeError before `attach`."""
        if self.starts is None:
            raise RuntimeError("GIN: attach a graph before the first forward")
        ones = torch.ones(len(self.sources), device=h.device)
        size = (len(self.degree), len(self.degree))
        adjacency = torch.sparse_csr_tensor(self.starts, self.sources, ones, size, check_invariants=False)
        hidden = [h]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], adjacency, self.degree))
        return (self.prediction(hidden[-2]) + hidden[-1]) / 2
