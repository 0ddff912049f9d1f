"""How far one request got: its tokens, its blocks, its drafts. State only; the scheduler decides."""

from array import array
from dataclasses import dataclass, field

from outrider.workers.types.request import Request, TokenLogprobs
from outrider.workers.types.round import SequenceStart


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One of a request's n outputs. Ids rise in order of arrival, so a larger id is a younger sequence."""

    sequence_id: int
    request: Request
    output_index: int
    token_ids: list[int]  # prompt, then committed output
    limit: int  # length at which it ends: max_model_len, or the prompt and max_tokens
    draft_ceiling: int  # most drafts in one of its rounds; 0 keeps it out of speculation
    owner: int = 0  # data group whose ranks run it, and whose blocks it holds; chosen at admission
    start: int = 0  # position of its next query row
    computed: int = 0  # leading tokens whose cache entries are committed; start, or some more after a prefix hit
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    drafts: list[int] = field(default_factory=list)  # verified by its next round
    in_flight: bool = False
    cancelled: bool = False  # while in flight: ends at the commit of its round
    begun: bool = False  # the sampler knows it
    cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first admitted
    block_keys: list[bytes] = field(default_factory=list)  # prefix cache keys of its leading full blocks
    published: int = 0  # leading blocks that are in the prefix cache, or whose equals are
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1 and up, until given out
    salted: bool = False  # its keys say that the drafter's entries are in its blocks too
    followed: bool = False  # by the drafter, in its latest round
    followed_from: int = 1  # the first slot of the drafter's cache that holds it
    publishes: bool = True  # its full blocks hold what their keys say: the drafter's entries too, or not for certain

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    def follow(self, followed: bool) -> None:
        """The drafter takes in the rows of its coming round, or does not: then it begins anew with the next it does."""
        if followed and not self.followed:
            self.followed_from = self.start + 1
        self.followed = followed
        self.publishes = not self.salted or (followed and self.followed_from == 1)

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are wanted of it, and not all given out yet."""
        wanted = self.request.params.prompt_logprobs is not None
        return wanted and self.output_index == 0 and self.output_tokens == 0

    def rows_to_score(self, end: int) -> int:
        """How many rows from its next one to position `end` have a prompt token after them that is not scored yet."""
        return max(0, end - max(self.start, len(self.prompt_logprobs))) if self.scores_prompt else 0

    def introduction(self) -> SequenceStart:
        """What the sampler must know, sent with its first round."""
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
