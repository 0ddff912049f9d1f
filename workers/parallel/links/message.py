"""The content of a stage link's messages as bytes: a Round, a Verdict, or the command to stop.

The layout is 8-byte integers (kind, round id, lane, bytes of JSON, then one length per array), then the arrays in
declaration order, then JSON: what the sampler must know of sequences that begin, or will. Hidden states are sent
separately. This module does not know the transport, nor what the numbers mean.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from operator import attrgetter
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import Round, SequenceStart, Verdict, array_fields

_INTEGER = 8  # bytes; array elements have the same size
_KIND = Struct("=q")


class MessageKind(IntEnum):
    ROUND = 1
    VERDICT = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts of one kind of message."""

    content: type[Round] | type[Verdict]
    names: tuple[str, ...]  # the arrays' names
    floats: frozenset[str]  # names of float64 arrays; the others are int64
    counts: Struct  # kind, round id, lane, bytes of JSON, one length per array
    arrays: Callable[[Round | Verdict], tuple[NDArray[Any], ...]]

    @classmethod
    def of(cls, content: type[Round] | type[Verdict]) -> "_Layout":
        arrays = array_fields(content)
        floats = frozenset(name for name, element_type in arrays.items() if element_type == np.float64)
        return cls(content, tuple(arrays), floats, Struct(f"={4 + len(arrays)}q"), attrgetter(*arrays))


_LAYOUTS: dict[int, _Layout] = {MessageKind.ROUND: _Layout.of(Round), MessageKind.VERDICT: _Layout.of(Verdict)}


def pack(content: Round | Verdict | None) -> bytes:
    """One message without its hidden states. None is the command to stop."""
    if content is None:
        return _KIND.pack(MessageKind.STOP)
    kind = MessageKind.ROUND if isinstance(content, Round) else MessageKind.VERDICT
    layout = _LAYOUTS[kind]
    arrays = layout.arrays(content)
    starts = _starts_to_json(content) if isinstance(content, Round) and (content.begins or content.prepares) else b""
    counts = layout.counts.pack(kind, content.round_id, content.lane, len(starts), *map(len, arrays))
    return b"".join([counts, *[array.tobytes() for array in arrays], starts])


def unpack(data: bytearray) -> Round | Verdict | None:
    """The inverse of `pack`; more bytes may follow in `data`. The arrays are views of `data`, which must not change."""
    layout = _LAYOUTS.get(_KIND.unpack_from(data)[0])
    if layout is None:
        return None
    _, round_id, lane, starts_bytes, *lengths = layout.counts.unpack_from(data)
    values: dict[str, Any] = {"round_id": round_id, "lane": lane}
    words = np.frombuffer(data, dtype=np.int64, count=len(data) // _INTEGER)
    at = layout.counts.size // _INTEGER
    for name, length in zip(layout.names, lengths, strict=True):
        values[name] = words[at : at + length]
        at += length
    for name in layout.floats:
        values[name] = values[name].view(np.float64)
    if starts_bytes:
        values |= _starts_from_json(data[_INTEGER * at : _INTEGER * at + starts_bytes])
    return layout.content(**values)


def _starts_to_json(round: Round) -> bytes:
    begins = [{**_shallow(start), "params": start.params.to_json()} for start in round.begins]
    return json.dumps({"begins": begins, "prepares": [one.to_dict() for one in round.prepares]}).encode()


def _shallow(start: SequenceStart) -> dict[str, Any]:
    return {field.name: getattr(start, field.name) for field in fields(start)}


def _starts_from_json(text: bytearray) -> dict[str, Any]:
    starts = json.loads(text)
    prepares = tuple(StructuredOutputsParams.of(one) for one in starts["prepares"])
    return {"begins": tuple(_start(values) for values in starts["begins"]), "prepares": prepares}


def _start(values: dict[str, Any]) -> SequenceStart:
    lists = {name: tuple(values[name]) for name in ("prompt_ids", "output_token_ids")}
    return SequenceStart(**{**values, **lists, "params": SamplingParams.from_json(values["params"])})
