"""How many tokens to draft for a sequence in its next round: the engine's setting joined with the requests' own.

Pure: seconds are given to it. Depths never change the text, so any rule would do; which one is fast is auto_depth.py's.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise, takewhile
from typing import NamedTuple

from outrider.workers.engine.round import RUNNING, Round, Verdict
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import LOOKUP, MAX_DRAFT_TOKENS
from outrider.workers.speculation.auto_depth import AUTO_DEPTHS, AutoDepth, Drafted
from outrider.workers.speculation.confidence import Confidence
from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.price import VerificationPrice


class _Pending(NamedTuple):
    """A sequence's drafts that were made for its next round."""

    greedy: bool
    leads: list[float]  # of all that were made


class DepthPolicy:
    """The engine's speculation setting joined with the requests' own. Not thread-safe."""

    def __init__(self, speculation: str | int) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which bounds the requests' own too."""
        self._default = speculation
        self._ceiling = (
            speculation if isinstance(speculation, int) else {"off": 0, "auto": MAX_DRAFT_TOKENS}[speculation]
        )
        self._auto = AutoDepth(tuple(depth for depth in AUTO_DEPTHS if depth <= self._ceiling))
        self._confidence = Confidence()
        self._price = VerificationPrice()
        self._greedy: dict[int, bool] = {}  # the sequences whose depth is "auto"
        self._pending: dict[int, _Pending] = {}  # theirs, by id
        self._looked_up: set[int] = set()  # sequences whose drafts are not a model's: depths have no part in them
        self._draft_s: dict[int, float] = {}  # by lane: seconds that the drafts under verification took to make

    @property
    def sequences(self) -> int:
        """How many sequences it keeps something of."""
        return max(len(self._auto), len(self._greedy))

    def depth(self, sequence: Sequence) -> int:
        """Drafts to make for the sequence after the round that is being composed."""
        requested = sequence.request.params.speculation
        wanted = self._default if requested is None else requested
        if wanted == "off" or not self._ceiling:
            return 0
        if wanted != "auto":
            return min(int(wanted), self._ceiling)
        self._greedy[sequence.sequence_id] = sequence.request.params.greedy
        return self._auto.depth(sequence.sequence_id)

    def worthwhile(self, drafts: Mapping[int, list[Draft]]) -> dict[int, list[int]]:
        """Of drafts by sequence id those to verify. With a fixed depth all; else while they are worth their time."""
        return {sequence_id: self._kept(sequence_id, own) for sequence_id, own in drafts.items()}

    def _kept(self, sequence_id: int, drafts: list[Draft]) -> list[int]:
        tokens = [draft.token_id for draft in drafts]
        if drafts and drafts[0].drafter == LOOKUP:
            self._looked_up.add(sequence_id)
            return tokens
        if sequence_id not in self._greedy:
            return tokens
        greedy, leads = self._greedy[sequence_id], [draft.confidence for draft in drafts]
        self._pending[sequence_id] = _Pending(greedy, leads)
        price = self._price.per_draft
        survivals = self._confidence.survivals(greedy, leads)
        return tokens[: sum(1 for _ in takewhile(lambda survival: survival >= price, survivals))]

    def observe(self, round: Round, verdict: Verdict, round_s: float, draft_s: float) -> None:
        """Learns from a round: `round_s` from its scheduling to its verdict, `draft_s` then, on the next drafts.

        A depth's price is the making of its drafts and their verification, so `draft_s` counts with the lane's next.
        """
        made_s = self._draft_s.get(round.lane, 0.0)
        self._draft_s[round.lane] = draft_s
        decoding = list(_decoding(round, verdict))
        drafted = [self._judged(each) for each in decoding if each.sequence_id not in self._looked_up]
        whole = len(decoding) == round.sequences
        self._auto.observe(drafted, made_s + round_s if whole and len(drafted) == len(decoding) else None)
        self._looked_up.difference_update(round.sequence_ids.tolist())
        if decoding and whole:
            self._price.observe(round.rows, len(verdict.token_ids), round_s, made_s)
        finished = (s for s, finish in zip(round.sequence_ids.tolist(), verdict.finish.tolist(), strict=True) if finish)
        for sequence_id in (*round.ends.tolist(), *finished):
            self._forget(sequence_id)

    def _judged(self, verified: Drafted) -> Drafted:
        """Learns from the verified drafts of a sequence; the same with all that had been made for it."""
        made = self._pending.pop(verified.sequence_id, None)
        if made is None:
            return verified
        judged = made.leads[: verified.accepted if verified.finished else verified.drafts]
        self._confidence.observe(made.greedy, judged, verified.accepted)
        return verified._replace(drafts=max(verified.drafts, len(made.leads)))

    def _forget(self, sequence_id: int) -> None:
        self._auto.forget(sequence_id)
        self._greedy.pop(sequence_id, None)
        self._pending.pop(sequence_id, None)


def _decoding(round: Round, verdict: Verdict) -> Iterator[Drafted]:
    """The round's sequences that only verified, with the drafts that they verified."""
    columns = zip(
        round.sequence_ids.tolist(), round.sample_counts.tolist(), verdict.drafts_accepted.tolist(),
        verdict.finish.tolist(), pairwise(round.query_offsets.tolist()), strict=True,
    )  # fmt: skip
    for sequence_id, count, accepted, finish, (first, end) in columns:
        if count == end - first:
            yield Drafted(sequence_id, count - 1, accepted, finish != RUNNING)
