"""Expert dispatch by DeepEP (github.com/deepseek-ai/DeepEP), used on GPUs if it is installed.

It uses the high-throughput `Buffer` of DeepEP versions 1 and 2 in both directions. DeepEP's `combine` is not used,
since it sums outputs in an order of its own. Instead, outputs return as rows of a second `dispatch`, to the ranks that
own their columns, and are summed there in a fixed order. Each row carries a number, in the field of DeepEP's weights,
that says which row it is. So results do not depend on the order of arrival.

Tested with a substitute that does the same over gloo; it has never run on a GPU.
"""

import importlib
import importlib.util
import logging
import time
from typing import Any

import torch
from torch import Tensor

from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives
from outrider.workers.parallel.expert_dispatch import AllToAll, ExpertDispatch, RunExperts, first_true
from outrider.workers.parallel.sharing import Sharing

log = logging.getLogger("outrider.links")
_ROWS = 1 << 16  # more than a rank sends: rank and row are one number, and float32 stores 24 bits exactly
_MOST_RANKS = 1 << 8
_ALIGNED = 128  # values: sent rows are padded to a multiple
_NO_TARGET = -1


def find_deep_ep(ranks: int) -> Any | None:
    """The module `deep_ep`, if it is installed, can be loaded, and supports this number of ranks."""
    if importlib.util.find_spec("deep_ep") is None:
        return None
    try:
        module = importlib.import_module("deep_ep")
        module.Buffer.get_dispatch_config(ranks)
    except (ImportError, AssertionError, OSError, RuntimeError) as error:
        log.warning("DeepEP is installed, but not used: %s", error)
        return None
    return module if ranks <= _MOST_RANKS else None


def open_buffer(module: Any, group: GroupCollectives, hidden_bytes: int) -> Any:
    """DeepEP's buffer for rows of `hidden_bytes`. Collective: every rank of the group must call it."""
    config = module.Buffer.get_dispatch_config(group.size)
    sizes = (
        hint(hidden_bytes, group.size) for hint in (config.get_nvl_buffer_size_hint, config.get_rdma_buffer_size_hint)
    )
    log.info("expert dispatch uses DeepEP %s", getattr(module, "__version__", ""))
    return module.Buffer(group.process_group, *sizes)


class DeepEp:
    """Expert slots are distributed over the stage's ranks; rows are bfloat16. Implements ExpertDispatch."""

    def __init__(self, sharing: Sharing, buffer: Any, hidden: int, slots: int) -> None:
        assert isinstance(sharing.stage, GroupCollectives), "DeepEP needs a process group"
        self._shard, self._stage, self._buffer = sharing.shard, sharing.stage, buffer
        self._columns = sharing.shard.cut(hidden)
        self._slots, self._each = slots, slots // sharing.stage.size  # slots of the stage, slots per rank

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        if len(x) >= _ROWS:
            raise ValueError(f"DeepEP carries at most {_ROWS - 1} rows of a rank in a round, got {len(x)}")
        rows, local, numbers, pairs = self._all_rows(x, slots)
        flat, places = local.flatten(), slots.shape[1]
        own = first_true(flat >= 0, pairs)
        row = own // places
        outputs = experts(rows.index_select(0, row), flat[own] + self._stage.rank * self._each)
        return self._return(outputs, numbers[row], own % places, slots)

    def _all_rows(self, x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Rows that may need this rank's experts, their local slots by choice (-1: none), and their numbers.

        A row's number is _ROWS times its source rank, plus its index there. At last the number of local slots.
        """
        ranks = slots // self._each
        numbers = torch.arange(len(x), device=x.device) + self._stage.rank * _ROWS
        if self._shard.datas == 1:  # every rank has all rows
            here = ranks == self._stage.rank
            return x, torch.where(here, slots % self._each, _NO_TARGET), numbers, int(here.sum())
        reached = ranks % self._shard.tensors == self._shard.tensor  # the tensor group's other ranks send the rest
        targets = torch.where(reached, slots, _NO_TARGET)
        return self._send(x, targets, numbers, self._slots, "rows to experts")

    def _return(self, outputs: Tensor, numbers: Tensor, place: Tensor, slots: Tensor) -> Tensor:
        """Sends each output's columns to the ranks that own them in the row's tensor group -> [R, k, own columns]."""
        places, tensors = slots.shape[1], self._shard.tensors
        source, row = numbers // _ROWS, numbers % _ROWS
        data = source // tensors
        width = -(-self._columns.widest // _ALIGNED) * _ALIGNED
        sent = outputs.new_zeros(tensors, len(outputs), width)
        for tensor in range(tensors):
            sent[tensor, :, : self._columns.width(tensor)] = outputs[:, self._columns.slice(tensor)]
        owners = torch.arange(tensors, device=outputs.device)[:, None] + data * tensors  # [tensors, pairs]
        belongs = (row * places + place).expand(tensors, -1)
        came, _, where, _ = self._send(
            sent.flatten(0, 1), owners.reshape(-1, 1), belongs.reshape(-1), self._stage.size, "expert outputs"
        )
        own = self._columns.width(self._shard.tensor)
        whole = came.new_zeros(slots.numel(), own).index_copy_(0, where, came[:, :own])
        return whole.view(*slots.shape, own)

    def _send(
        self, rows: Tensor, targets: Tensor, numbers: Tensor, count: int, purpose: str
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Sends each of `rows` [n, width] once to every rank that has one of its `targets` [n, k].

        A target is 0..`count`-1, or -1 for none. Returns the received rows, which of this rank's targets each is for
        (or -1), the `numbers` [n] that were sent with them, and how many targets there are.
        """
        if not len(rows):  # DeepEP needs at least one row: this one has no target
            rows, numbers = rows.new_zeros(1, rows.shape[1]), numbers.new_zeros(1)
            targets = targets.new_full((1, targets.shape[1]), _NO_TARGET)
        began = time.perf_counter()
        targets = targets.to(_index_type()).contiguous()
        sent_numbers = numbers.float()[:, None].expand_as(targets).contiguous()
        try:
            per_rank, per_node, per_target, in_rank, _ = self._buffer.get_dispatch_layout(targets, count)
            came, local, numbers_by_place, per_own_target, _, arrival = self._buffer.dispatch(
                rows.contiguous(),
                num_tokens_per_rank=per_rank,
                num_tokens_per_rdma_rank=per_node,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_target,
                topk_idx=targets,
                topk_weights=sent_numbers,
                async_finish=True,
            )
        except RuntimeError as error:
            raise ExchangeBrokenError(f"a rank is gone or late: DeepEP's {purpose} failed ({error})") from error
        seconds = time.perf_counter() - began
        self._stage.on_launched()
        arrival.current_stream_wait()  # the received rows are valid from here
        # Only the device knows how many rows were sent, and reading that would synchronize. So received bytes are
        # counted.
        self._stage.note(purpose, came.numel() * came.element_size(), seconds)
        return came, local.long(), numbers_by_place.amax(dim=1).long(), sum(per_own_target)


def expert_dispatch(sharing: Sharing, hidden: int, slots: int) -> ExpertDispatch:
    """The dispatch to experts that are spread over data groups in `slots` slots."""
    if sharing.deep_ep is None:
        return AllToAll(sharing, hidden, slots)
    return DeepEp(sharing, sharing.deep_ep, hidden, slots)


def _index_type() -> torch.dtype:
    """The dtype of DeepEP's expert indices, which differs between builds."""
    found = getattr(importlib.import_module("deep_ep"), "topk_idx_t", torch.int64)
    assert isinstance(found, torch.dtype)
    return found
