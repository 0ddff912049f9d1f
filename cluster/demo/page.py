"""The demo's HTML page: plots of its figures, and outputs replayed round by round. Loads nothing from the network."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources

from outrider.cluster.api.status import WorkerStatus
from outrider.cluster.demo.report import DemoReport
from outrider.cluster.demo.runs import Delta
from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.tokenizer import Tokenizer

_DATA, _COLOURS = "__DATA__", "__COLOURS__"
_PROMPT_END = 400  # number of characters of a prompt that are shown


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """One token's text."""

    text: str
    drafted: bool  # an accepted draft


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message of a stream. It covers one round, or several if the client read too slowly."""

    pieces: list[TokenText]
    tokens: int
    drafted: int
    accepted: int
    seconds: float  # since the previous message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One output of the demo, by messages."""

    domain: str
    prompt: str
    frames: list[Frame]


def make_replay(domain: str, prompt: str, deltas: Sequence[Delta], tokenizer: Tokenizer) -> Replay:
    """A message of several rounds does not say which tokens were drafts, so all are shown as not drafted."""
    detokenizer = Detokenizer(tokenizer)
    frames, before = [], 0.0
    for number, delta in enumerate(deltas, 1):
        one_round = len(delta.token_ids) <= delta.accepted + 1
        pieces = [
            TokenText(text=detokenizer.add(token_id), drafted=one_round and place < delta.accepted)
            for place, token_id in enumerate(delta.token_ids)
        ]
        if number == len(deltas):
            pieces.append(TokenText(text=detokenizer.flush(), drafted=False))
        frames.append(
            Frame(
                pieces=[piece for piece in pieces if piece.text],
                tokens=len(delta.token_ids),
                drafted=delta.drafted,
                accepted=delta.accepted,
                seconds=delta.seconds - before,
            )
        )
        before = delta.seconds
    return Replay(domain=domain, prompt=prompt[-_PROMPT_END:], frames=frames)


def page(
    report: DemoReport, replays: Sequence[Replay], ranks: Sequence[WorkerStatus], version: str, machine: str
) -> str:
    """`machine`: description of the machine it ran on."""
    stages = [
        {
            "stage": rank.stage,
            "layers": f"{rank.first_layer}..{rank.end_layer - 1}",
            "drafting": rank.drafting,
            "computing": rank.busy - rank.drafting,
        }
        for rank in ranks
    ]
    data = {
        "version": version,
        "machine": machine,
        "report": dataclasses.asdict(report),
        "replays": [dataclasses.asdict(replay) for replay in replays],
        "stages": stages,
    }
    template = resources.files("outrider.cluster.demo").joinpath("page.html").read_text("utf-8")
    colours = resources.files("outrider.cluster.gateway").joinpath("page/colours.css").read_text("utf-8")
    coloured = template.replace(_COLOURS, colours, 1)
    return coloured.replace(_DATA, json.dumps(data).replace("<", "\\u003c"), 1)
