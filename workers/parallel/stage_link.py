"""Carries Rounds down the pipeline and Verdicts back up, over torch.distributed point to point.

A message is a fixed header of int64 counts, then one body of bytes: the integer arrays in declaration order, the
sequences' starts as JSON, the hidden states. Knows nothing of what the numbers mean.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from outrider.workers.engine.round import Round, SequenceStart, Verdict, array_fields
from outrider.workers.errors import EngineStoppedError
from outrider.workers.sampling_params import SamplingParams

_FOREVER = timedelta(days=365)
_HEADER_SLOTS = 24  # kind, round id, lane, hidden rows, hidden width, bytes of JSON, then one length per array


class Kind(IntEnum):
    ROUND = 1
    VERDICT = 2
    STOP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One arrival. `content` is a Round or a Verdict; None means the sender stops and so should the receiver."""

    content: Round | Verdict | None
    hidden: Tensor


_KINDS: dict[Kind, type[Round] | type[Verdict]] = {Kind.ROUND: Round, Kind.VERDICT: Verdict}
_FIELDS = {kind: array_fields(cls) for kind, cls in _KINDS.items()}


def pack(content: Round | Verdict | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Header [slots] int64 and body [bytes] uint8 of one message."""
    header = np.zeros(_HEADER_SLOTS, dtype=np.int64)
    if content is None:
        header[0] = Kind.STOP
        return torch.from_numpy(header), torch.empty(0, dtype=torch.uint8)
    kind = Kind.ROUND if isinstance(content, Round) else Kind.VERDICT
    arrays = [getattr(content, name) for name in _FIELDS[kind]]
    starts = _starts_to_json(content)
    header[:6] = kind, content.round_id, content.lane, hidden.shape[0], hidden.shape[1], len(starts)
    header[6 : 6 + len(arrays)] = [len(a) for a in arrays]
    parts = [np.frombuffer(a.tobytes(), dtype=np.uint8) for a in arrays] + [np.frombuffer(starts, dtype=np.uint8)]
    hidden_bytes = hidden.detach().contiguous().cpu().view(torch.uint8).flatten()
    return torch.from_numpy(header), torch.cat([torch.from_numpy(np.concatenate(parts)), hidden_bytes])


def body_bytes(header: Tensor, dtype: torch.dtype) -> int:
    """Length of the body that follows `header`."""
    counts = header.tolist()
    return int(8 * sum(counts[6:]) + counts[5] + counts[3] * counts[4] * dtype.itemsize)


def unpack(header: Tensor, body: Tensor, dtype: torch.dtype) -> Message:
    """The message that `pack` made; `dtype` is the hidden states'."""
    counts = header.tolist()
    kind = Kind(counts[0])
    if kind is Kind.STOP:
        return Message(content=None, hidden=torch.empty(0, 0, dtype=dtype))
    data, at = body.numpy(), 0
    values: dict[str, Any] = {}
    for (name, element_type), length in zip(_FIELDS[kind].items(), counts[6:], strict=False):
        values[name] = data[at : at + 8 * length].copy().view(element_type)
        at += 8 * length
    starts = bytes(data[at : at + counts[5]])
    hidden = body[at + counts[5] :].clone().view(dtype).view(counts[3], counts[4])
    if kind is Kind.ROUND:
        values["begins"] = _starts_from_json(starts)
    return Message(content=_KINDS[kind](round_id=counts[1], lane=counts[2], **values), hidden=hidden)


def _starts_to_json(content: Round | Verdict) -> bytes:
    if isinstance(content, Verdict) or not content.begins:
        return b""
    rows = [(b.sequence_id, b.output_index, b.seed, b.prompt_tokens, b.params.to_json()) for b in content.begins]
    return json.dumps(rows).encode()


def _starts_from_json(text: bytes) -> tuple[SequenceStart, ...]:
    return tuple(
        SequenceStart(
            sequence_id=sequence_id,
            output_index=output_index,
            seed=seed,
            prompt_tokens=prompt_tokens,
            params=SamplingParams.from_json(params),
        )
        for sequence_id, output_index, seed, prompt_tokens, params in json.loads(text or "[]")
    )


class StageLink:
    """One direction between this rank and `peer`. Sends do not wait for the receiver; at most one is under way.

    `where` names the peer in errors, e.g. "rank 1 (stage 1)".
    """

    def __init__(self, peer: int, where: str, dtype: torch.dtype, device: torch.device, timeout_s: float) -> None:
        self._peer, self._where, self._dtype = peer, where, dtype
        self._device, self._timeout = device, timedelta(seconds=timeout_s)
        self._sending: list[tuple[Any, Tensor]] = []

    def send(self, content: Round | Verdict | None, hidden: Tensor) -> None:
        """Starts sending. EngineStoppedError if the previous message did not leave in time."""
        self.flush()
        with self._naming_peer("sending to"):
            for part in pack(content, hidden):
                if part.numel():
                    on_wire = part.to(self._wire_device)
                    self._sending.append((dist.isend(on_wire, self._peer), on_wire))

    def flush(self) -> None:
        """Waits until what was sent has left."""
        with self._naming_peer("sending to"):
            for work, _ in self._sending:
                work.wait(self._timeout)
        self._sending.clear()

    def receive(self, deadline: bool, waiting_for: str) -> Message:
        """The next message. Without `deadline` it waits for as long as there is nothing to do."""
        with self._naming_peer(f"waiting for {waiting_for} from"):
            header = self._take((_HEADER_SLOTS,), torch.int64, self._timeout if deadline else _FOREVER)
            body = self._take((body_bytes(header, self._dtype),), torch.uint8, self._timeout)
        message = unpack(header, body, self._dtype)
        return dataclasses.replace(message, hidden=message.hidden.to(self._device))

    @property
    def _wire_device(self) -> torch.device:
        return self._device if dist.get_backend() == "nccl" else torch.device("cpu")

    def _take(self, shape: tuple[int], dtype: torch.dtype, timeout: timedelta) -> Tensor:
        """The next tensor from the peer, on the CPU; nothing travels for an empty one."""
        tensor = torch.empty(shape, dtype=dtype, device=self._wire_device)
        if tensor.numel():
            work = dist.irecv(tensor, self._peer)
            assert work is not None, "this rank is in the group"
            work.wait(timeout)
        return tensor.cpu()

    @contextlib.contextmanager
    def _naming_peer(self, action: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EngineStoppedError(
                f"{self._where} is gone or late: {action} it failed ({first_clause(error)})"
            ) from error


def first_clause(error: Exception) -> str:
    """What torch.distributed says went wrong, without its source file and its advice."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", line).split(". ")[0]
