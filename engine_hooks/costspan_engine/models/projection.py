"""Linear layers, and what adapters add to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from costspan_engine.models.attention import PagedBatch


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to some outputs of a projection.

    Attributes:
        outputs: Which.
        down: (rank, inputs).
        up: (outputs, rank), with the adapter's scale in it.
    """

    outputs: slice
    down: Tensor
    up: Tensor


class Projection(nn.Module):
    """Linear layers of the checkpoint that share their input, computed as one: fewer, larger multiplications.

    Args:
        inputs: Width of the input.
        widths: Width of each layer's output, by its name in the checkpoint.
        bias: Whether they have biases.

    Attributes:
        parts: Which outputs are whose.
        adapted: What each adapter adds, by its name.
    """

    def __init__(self, inputs: int, widths: Mapping[str, int], *, bias: bool) -> None:
        super().__init__()
        total = sum(widths.values())
        self.weight = nn.Parameter(torch.randn(total, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        self.parts: dict[str, slice] = {}
        first = 0
        for name, width in widths.items():
            self.parts[name] = slice(first, first + width)
            first += width
        self.adapted: dict[str, list[LowRank]] = {}

    def forward(self, hidden: Tensor, paged: PagedBatch) -> Tensor:
        """(tokens, inputs) to (tokens, outputs), each row with what its adapter adds."""
        output = F.linear(hidden, self.weight, self.bias)
        for name, rows in paged.adapters.items():
            for delta in self.adapted.get(name, ()):
                added = F.linear(F.linear(hidden.index_select(0, rows), delta.down), delta.up)
                output[:, delta.outputs].index_add_(0, rows, added)
        return output
