"""DeepEP's high-throughput Buffer as its documentation describes it, over gloo on CPUs, in plain Python.

Only what outrider calls. What a rank receives comes in an order of chance: DeepEP promises none. Its limits are
asserted: types, contiguity, widths, at least a row.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__version__ = "stand-in"
topk_idx_t = torch.int64


class Config:
    def get_nvl_buffer_size_hint(self, hidden_bytes: int, ranks: int) -> int:
        return hidden_bytes * ranks

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, ranks: int) -> int:
        return 0


class Arrival:
    """What came is nowhere before it is waited for."""

    def __init__(self, came: tuple[Tensor, ...]) -> None:
        self._came = came
        self.places = tuple(torch.full_like(each, -7) for each in came)

    def current_stream_wait(self) -> None:
        for place, each in zip(self.places, self._came, strict=True):
            place.copy_(each)


class Buffer:
    def __init__(self, group: Any, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.hidden_bytes = num_nvl_bytes // self.size
        self.calls = 0

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        assert num_ranks in (2, 4, 8), f"Unsupported number of EP ranks: {num_ranks}"
        return Config()

    def get_dispatch_layout(self, topk_idx: Tensor, num_experts: int) -> tuple[Any, ...]:
        assert topk_idx.dtype == topk_idx_t
        assert topk_idx.is_contiguous()
        assert num_experts % self.size == 0
        ranks = torch.where(topk_idx >= 0, topk_idx // (num_experts // self.size), -1)
        in_rank = torch.stack([(ranks == rank).any(dim=1) for rank in range(self.size)], dim=1)
        per_expert = torch.stack([(topk_idx == e).any(dim=1).sum() for e in range(num_experts)])
        return in_rank.sum(dim=0).int(), None, per_expert.int(), in_rank.contiguous(), None

    def dispatch(
        self,
        x: Tensor,
        *,
        num_tokens_per_rank: Tensor,
        num_tokens_per_rdma_rank: None,
        is_token_in_rank: Tensor,
        num_tokens_per_expert: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        async_finish: bool,
    ) -> tuple[Any, ...]:
        assert (x.dtype, topk_weights.dtype) == (torch.bfloat16, torch.float32)
        assert x.shape[1] * 2 % 32 == 0
        assert x.shape[1] * 2 <= self.hidden_bytes
        assert len(x) == len(topk_idx) == len(topk_weights) > 0
        assert x.is_contiguous()
        assert topk_weights.is_contiguous()
        self.calls += 1
        each = len(num_tokens_per_expert) // self.size
        sent = []
        for rank in range(self.size):
            own = is_token_in_rank[:, rank]
            local = topk_idx[own] - rank * each
            here = (local >= 0) & (local < each) & (topk_idx[own] >= 0)
            sent.append((x[own], torch.where(here, local, -1), torch.where(here, topk_weights[own], 0.0)))
        assert [len(rows) for rows, _, _ in sent] == num_tokens_per_rank.tolist()
        given: list[Any] = [None] * self.size
        dist.all_gather_object(given, sent, self.group)
        came = [torch.cat([parts[self.rank][i] for parts in given]) for i in range(3)]
        order = torch.randperm(len(came[0]))
        rows, local, weights = (each[order] for each in came)
        counts = [int((local == expert).any(dim=1).sum()) for expert in range(each)]
        assert async_finish
        arrival = Arrival((rows, local, weights))
        return *arrival.places, counts, ("handle",), arrival
