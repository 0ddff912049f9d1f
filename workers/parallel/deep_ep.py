"""Rows to experts and outputs back by DeepEP (github.com/deepseek-ai/DeepEP), where it is installed beside GPUs.

Its high-throughput `Buffer` (of its versions 1 and 2) carries both ways. Its `combine` adds outputs up in an order of
its own, so it is not used: outputs travel back as rows of another `dispatch`, each to the ranks that own its columns,
and are summed there in one fixed order. What comes carries a number, in the place of DeepEP's weights, that says where
it belongs: nothing depends on the order in which it comes.

Tested with a stand-in that does the same over gloo; it has never run on a GPU.
"""

import importlib
import importlib.util
import logging
import time
from typing import Any

import torch
from torch import Tensor

from outrider.workers.parallel.collectives import ExchangeBrokenError
from outrider.workers.parallel.expert_dispatch import RunExperts, counts_of
from outrider.workers.parallel.group_collectives import GroupCollectives
from outrider.workers.parallel.sharing import Sharing

log = logging.getLogger("outrider.links")
_ROWS = 1 << 16  # of a rank, at most: a number names a rank and a row, and float32 has 24 bits for it
_MOST_RANKS = 1 << 8
_ALIGNED = 128  # values of a row that travels
_NOBODY = -1


def find_deep_ep(ranks: int) -> Any | None:
    """The module, if it is installed, loads, and knows groups of so many ranks."""
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
    """DeepEP's buffer for rows of `hidden_bytes`. Every rank of the group must call it, at the same place."""
    config = module.Buffer.get_dispatch_config(group.size)
    sizes = (
        hint(hidden_bytes, group.size) for hint in (config.get_nvl_buffer_size_hint, config.get_rdma_buffer_size_hint)
    )
    log.info("rows travel to experts by DeepEP %s", getattr(module, "__version__", ""))
    return module.Buffer(group.process_group, *sizes)


class DeepEp:
    """Slots are dealt out over the stage's ranks, rows are bfloat16. Implements ExpertDispatch."""

    def __init__(self, sharing: Sharing, buffer: Any, hidden: int, slots: int) -> None:
        assert isinstance(sharing.stage, GroupCollectives), "DeepEP goes over a process group"
        self._shard, self._stage, self._buffer = sharing.shard, sharing.stage, buffer
        self._columns = sharing.shard.cut(hidden)
        self._slots, self._each = slots, slots // sharing.stage.size  # of the stage, of a rank

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        if len(x) >= _ROWS:
            raise ValueError(f"DeepEP carries at most {_ROWS - 1} rows of a rank in a round, got {len(x)}")
        rows, local, numbers = self._all_rows(x, slots)
        row, place = (local >= 0).nonzero(as_tuple=True)  # a pair each
        order = (local[row, place] * (_ROWS * _MOST_RANKS) + numbers[row]).argsort()  # by slot, then by rank and row
        row, place = row[order], place[order]
        outputs = experts(rows.index_select(0, row), counts_of(local[row, place] + self._stage.rank * self._each))
        return self._return(outputs, numbers[row], place, slots)

    def _all_rows(self, x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that may be for this rank's experts, by place which of its slots takes each (or -1), and their numbers.

        A number is _ROWS times the rank that the row comes from, plus where it stands there.
        """
        ranks = slots // self._each
        numbers = torch.arange(len(x), device=x.device) + self._stage.rank * _ROWS
        if self._shard.datas == 1:  # every rank has all rows
            return x, torch.where(ranks == self._stage.rank, slots % self._each, _NOBODY), numbers
        reached = ranks % self._shard.tensors == self._shard.tensor  # by this rank; by others of its group the rest
        targets = torch.where(reached, slots, _NOBODY)
        came, local, told = self._send(x, targets, numbers, self._slots, "rows to experts")
        return came, local, told

    def _return(self, outputs: Tensor, numbers: Tensor, place: Tensor, slots: Tensor) -> Tensor:
        """Each output's columns to the ranks that own them in its row's group -> [R, k, own columns]."""
        places, tensors = slots.shape[1], self._shard.tensors
        source, row = numbers // _ROWS, numbers % _ROWS
        data = source // tensors
        width = -(-self._columns.widest // _ALIGNED) * _ALIGNED
        sent = outputs.new_zeros(tensors, len(outputs), width)
        for tensor in range(tensors):
            sent[tensor, :, : self._columns.width(tensor)] = outputs[:, self._columns.slice(tensor)]
        owners = torch.arange(tensors, device=outputs.device)[:, None] + data * tensors  # [tensors, pairs]
        belongs = (row * places + place).expand(tensors, -1)
        came, _, where = self._send(
            sent.flatten(0, 1), owners.reshape(-1, 1), belongs.reshape(-1), self._stage.size, "expert outputs"
        )
        own = self._columns.width(self._shard.tensor)
        whole = came.new_zeros(slots.numel(), own).index_copy_(0, where, came[:, :own])
        return whole.view(*slots.shape, own)

    def _send(
        self, rows: Tensor, targets: Tensor, numbers: Tensor, count: int, purpose: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each of `rows` [n, width] once to every rank that has one of its `targets` [n, k] of `count`, -1 being none.

        What comes: rows, which of this rank's targets each is for (or -1), and the `numbers` [n] of their senders.
        """
        if not len(rows):  # there is always one, though it goes nowhere
            rows, numbers = rows.new_zeros(1, rows.shape[1]), numbers.new_zeros(1)
            targets = targets.new_full((1, targets.shape[1]), _NOBODY)
        began = time.perf_counter()
        targets = targets.to(_index_type()).contiguous()
        told = numbers.float()[:, None].expand_as(targets).contiguous()
        try:
            per_rank, per_node, per_target, in_rank, _ = self._buffer.get_dispatch_layout(targets, count)
            came, local, numbers_by_place, _, _, arrival = self._buffer.dispatch(
                rows.contiguous(),
                num_tokens_per_rank=per_rank,
                num_tokens_per_rdma_rank=per_node,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_target,
                topk_idx=targets,
                topk_weights=told,
                async_finish=True,
            )
        except RuntimeError as error:
            raise ExchangeBrokenError(f"a rank is gone or late: DeepEP's {purpose} failed ({error})") from error
        seconds = time.perf_counter() - began
        self._stage.meanwhile()
        arrival.current_stream_wait()  # what came is only now to be read
        # How many rows this rank gave only the device knows, and asking would wait for it: what came is counted.
        self._stage.note(purpose, came.numel() * came.element_size(), seconds)
        return came, local.long(), numbers_by_place.amax(dim=1).long()


def _index_type() -> torch.dtype:
    """Of DeepEP's expert indices; its builds differ."""
    found = getattr(importlib.import_module("deep_ep"), "topk_idx_t", torch.int64)
    assert isinstance(found, torch.dtype)
    return found
