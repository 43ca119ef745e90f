"""A mixture of experts: many MLPs, of which a router chooses a few for each token."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from costspan_engine.models.attention import PagedBatch
from costspan_engine.models.config import ModelConfig


class Experts(nn.Module):
    """The weights of a layer's experts, stacked.

    Attributes:
        gate_up_proj: (experts, 2 · expert_size, hidden).
        down_proj: (experts, hidden, expert_size).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, width, hidden = config.experts, config.expert_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * width, hidden) / hidden**0.5)
        self.down_proj = nn.Parameter(torch.randn(count, hidden, width) / width**0.5)

    def forward(self, hidden: Tensor, loads: Tensor) -> Tensor:
        """SwiGLU of (tokens, hidden), sorted by expert; the first ``loads[0]`` tokens are the first expert's, and so on."""
        ends = loads.cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(hidden, self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)


class MixtureMLP(nn.Module):
    """Qwen3's and Mixtral's replacement of a layer's MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._chosen = config.experts_per_token
        self._normed = config.normed_routing
        self.gate = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.experts = Experts(config)

    def forward(self, hidden: Tensor, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); the experts' loads go to ``paged.routed``."""
        shares, chosen = self._route(hidden)
        # Every pair of token and expert, the pairs of one expert beside each other.
        order = chosen.flatten().argsort(stable=True)
        loads = _count(chosen.flatten(), self.experts.gate_up_proj.shape[0])
        paged.routed.append(loads)
        outputs = self.experts(hidden.index_select(0, order // self._chosen), loads)
        # Back in the order of tokens, so that a token's sum has one order of its terms whoever else is in the batch.
        pairs = torch.empty_like(outputs).index_copy_(0, order, outputs).view(*chosen.shape, -1)
        return (pairs * shares.unsqueeze(-1)).sum(1)

    def _route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's experts and what each of them counts for, both (tokens, experts_per_token)."""
        likely = F.softmax(self.gate(hidden), dim=-1, dtype=torch.float32)
        shares, chosen = likely.topk(self._chosen, dim=-1)
        if self._normed:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(hidden.dtype), chosen


def load_of(routed: list[Tensor]) -> tuple[list[int], float]:
    """What a step's routing looked like.

    Args:
        routed: ``PagedBatch.routed``: of each mixture layer, (experts,) tokens.

    Returns:
        Tokens sent to each expert, added up over layers; and the busiest expert's load over the mean, averaged over layers.
        ``([], 0.0)`` for a dense model.
    """
    if not routed:
        return [], 0.0
    loads = torch.stack(routed)
    skews = loads.amax(1) / loads.float().mean(1).clamp(min=1e-9)
    return loads.sum(0).tolist(), float(skews.mean())


def _count(chosen: Tensor, experts: int) -> Tensor:
    # bincount would wait for the device to learn the size of its answer.
    return torch.zeros(experts, dtype=torch.int64, device=chosen.device).index_add_(0, chosen, torch.ones_like(chosen))
