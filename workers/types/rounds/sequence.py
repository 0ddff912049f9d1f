"""The scheduling state of one output: tokens, blocks, drafts. The scheduler makes all decisions."""

from array import array
from dataclasses import dataclass, field

from outrider.workers.types.requests.request import Request, TokenLogprobs
from outrider.workers.types.rounds.round import SequenceStart


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One of a request's n outputs. Ids increase in order of arrival, so a younger sequence has a larger id."""

    sequence_id: int
    request: Request
    output_index: int
    token_ids: list[int]  # prompt, then committed output
    limit: int  # most tokens: max_model_len, or prompt plus max_tokens
    draft_ceiling: int  # most drafts per round; 0: no speculation
    owner: int = 0  # data group that runs it and has its blocks; chosen at admission
    start: int = 0  # position of its next query row
    computed: int = 0  # leading tokens with valid cache entries: `start`, or a few more after a prefix hit
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    drafts: list[int] = field(default_factory=list)  # verified by its next round
    in_flight: bool = False
    cancelled: bool = False  # while in flight: it ends at the commit of its round
    begun: bool = False  # it was in a round, so the sampler knows it
    cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first admitted
    block_keys: list[bytes] = field(default_factory=list)  # prefix cache keys of its leading full blocks
    published: int = 0  # leading blocks that are in the prefix cache (or blocks equal to them)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1 and up, not sent yet
    salted: bool = False  # its block keys state that the blocks also hold the drafter's entries
    followed: bool = False  # by the drafter, in its latest round
    followed_from: int = 1  # its first slot in the drafter's cache
    publishes: bool = True  # its full blocks may be published: they hold what their keys state

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    def follow(self, followed: bool) -> None:
        """Sets whether the drafter processes its next round. After skipped ones its cache is valid from this slot."""
        if followed and not self.followed:
            self.followed_from = self.start + 1
        self.followed = followed
        self.publishes = not self.salted or (followed and self.followed_from == 1)

    @property
    def scores_prompt(self) -> bool:
        """Whether it still has to compute log-probabilities of its prompt."""
        wanted = self.request.params.prompt_logprobs is not None
        return wanted and self.output_index == 0 and self.output_tokens == 0

    def rows_to_score(self, end: int) -> int:
        """Number of rows before position `end` whose next prompt token has no log-probability yet."""
        return max(0, end - max(self.start, len(self.prompt_logprobs))) if self.scores_prompt else 0

    def sequence_start(self) -> SequenceStart:
        """The SequenceStart for the sampler, sent with its first round."""
        prompt, params = self.request.prompt_token_ids, self.request.params
        return SequenceStart(
            sequence_id=self.sequence_id,
            output_index=self.output_index,
            seed=self.request.seed,
            prompt_tokens=self.prompt_tokens,
            params=params,
            prompt_ids=tuple(sorted(set(prompt))) if params.repetition_penalty != 1 else (),
            output_token_ids=tuple(self.token_ids[len(prompt) :]),
        )
