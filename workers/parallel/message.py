"""What travels on a stage link as bytes: a Round, a Verdict, or the word to stop.

The layout is 8-byte integers (kind, round id, lane, bytes of JSON, then one length per array), the arrays end to end
in declaration order, and what the sampler must know of sequences that begin, or will, as JSON. Hidden states travel
beside it. Knows nothing of how it travels, nor of what the numbers mean.
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

from outrider.workers.types.round import Round, SequenceStart, Verdict, array_fields
from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.structured_outputs import StructuredOutputsParams

_INTEGER = 8  # bytes; every array's elements are as wide
_KIND = Struct("=q")


class MessageKind(IntEnum):
    ROUND = 1
    VERDICT = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a kind's parts are."""

    content: type[Round] | type[Verdict]
    names: tuple[str, ...]  # of the arrays
    floats: frozenset[str]  # those that are not int64
    counts: Struct  # kind, round id, lane, bytes of JSON, one length per array
    arrays: Callable[[Round | Verdict], tuple[NDArray[Any], ...]]

    @classmethod
    def of(cls, content: type[Round] | type[Verdict]) -> "_Layout":
        arrays = array_fields(content)
        floats = frozenset(name for name, element_type in arrays.items() if element_type == np.float64)
        return cls(content, tuple(arrays), floats, Struct(f"={4 + len(arrays)}q"), attrgetter(*arrays))


_LAYOUTS: dict[int, _Layout] = {MessageKind.ROUND: _Layout.of(Round), MessageKind.VERDICT: _Layout.of(Verdict)}


def pack(content: Round | Verdict | None) -> bytes:
    """One message without its hidden states. None is the word to stop."""
    if content is None:
        return _KIND.pack(MessageKind.STOP)
    kind = MessageKind.ROUND if isinstance(content, Round) else MessageKind.VERDICT
    layout = _LAYOUTS[kind]
    arrays = layout.arrays(content)
    news = _news_to_json(content) if isinstance(content, Round) and (content.begins or content.prepares) else b""
    counts = layout.counts.pack(kind, content.round_id, content.lane, len(news), *map(len, arrays))
    return b"".join([counts, *[array.tobytes() for array in arrays], news])


def unpack(data: bytearray) -> Round | Verdict | None:
    """What `pack` was given; more may follow it in `data`. The arrays are views of `data`, theirs from now on."""
    layout = _LAYOUTS.get(_KIND.unpack_from(data)[0])
    if layout is None:
        return None
    _, round_id, lane, news_bytes, *lengths = layout.counts.unpack_from(data)
    values: dict[str, Any] = {"round_id": round_id, "lane": lane}
    words = np.frombuffer(data, dtype=np.int64, count=len(data) // _INTEGER)
    at = layout.counts.size // _INTEGER
    for name, length in zip(layout.names, lengths, strict=True):
        values[name] = words[at : at + length]
        at += length
    for name in layout.floats:
        values[name] = values[name].view(np.float64)
    if news_bytes:
        values |= _news_from_json(data[_INTEGER * at : _INTEGER * at + news_bytes])
    return layout.content(**values)


def _news_to_json(round: Round) -> bytes:
    begins = [{**_shallow(start), "params": start.params.to_json()} for start in round.begins]
    return json.dumps({"begins": begins, "prepares": [one.to_dict() for one in round.prepares]}).encode()


def _shallow(start: SequenceStart) -> dict[str, Any]:
    return {field.name: getattr(start, field.name) for field in fields(start)}


def _news_from_json(text: bytearray) -> dict[str, Any]:
    news = json.loads(text)
    prepares = tuple(StructuredOutputsParams.of(one) for one in news["prepares"])
    return {"begins": tuple(_start(values) for values in news["begins"]), "prepares": prepares}


def _start(values: dict[str, Any]) -> SequenceStart:
    lists = {name: tuple(values[name]) for name in ("prompt_ids", "output_token_ids")}
    return SequenceStart(**{**values, **lists, "params": SamplingParams.from_json(values["params"])})
