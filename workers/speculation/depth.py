"""How many tokens to draft for a sequence in its next round: the engine's setting joined with the requests' own.

Pure: seconds are given to it. Depths never change the text, so any rule would do; which one is fast is auto_depth.py's.
"""

from itertools import pairwise

from outrider.workers.engine.round import RUNNING, Round, Verdict
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import MAX_DRAFT_TOKENS
from outrider.workers.speculation.auto_depth import AUTO_DEPTHS, AutoDepth, Drafted


class DepthPolicy:
    """The engine's speculation setting joined with the requests' own. Not thread-safe."""

    def __init__(self, speculation: str | int) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which bounds the requests' own too."""
        self._default = speculation
        self._ceiling = (
            speculation if isinstance(speculation, int) else {"off": 0, "auto": MAX_DRAFT_TOKENS}[speculation]
        )
        self._auto = AutoDepth(tuple(depth for depth in AUTO_DEPTHS if depth <= self._ceiling))
        self._draft_s: dict[int, float] = {}  # by lane: seconds that the drafts under verification took to make

    @property
    def sequences(self) -> int:
        """How many sequences it keeps something of."""
        return len(self._auto)

    def depth(self, sequence: Sequence) -> int:
        """Drafts to make for the sequence after the round that is being composed."""
        requested = sequence.request.params.speculation
        wanted = self._default if requested is None else requested
        if wanted == "off" or not self._ceiling:
            return 0
        return self._auto.depth(sequence.sequence_id) if wanted == "auto" else min(int(wanted), self._ceiling)

    def observe(self, round: Round, verdict: Verdict, round_s: float, draft_s: float) -> None:
        """Learns from a round: `round_s` from its scheduling to its verdict, `draft_s` then, on the next drafts.

        A depth's price is the making of its drafts and their verification, so `draft_s` counts with the lane's next.
        """
        made_s = self._draft_s.get(round.lane, 0.0)
        self._draft_s[round.lane] = draft_s
        borders, counts = round.query_offsets.tolist(), round.sample_counts.tolist()
        outcomes = zip(
            round.sequence_ids.tolist(), counts, verdict.drafts_accepted.tolist(), verdict.finish.tolist(),
            pairwise(borders), strict=True,
        )  # fmt: skip
        drafted = [
            Drafted(sequence_id, count - 1, accepted, finish != RUNNING)
            for sequence_id, count, accepted, finish, (first, end) in outcomes
            if count == end - first
        ]
        self._auto.observe(drafted, made_s + round_s if len(drafted) == len(counts) else None)
        finished = (s for s, finish in zip(round.sequence_ids.tolist(), verdict.finish.tolist(), strict=True) if finish)
        for sequence_id in (*round.ends.tolist(), *finished):
            self._auto.forget(sequence_id)
