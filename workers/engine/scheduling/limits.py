"""Limits of rounds, sequences and drafts: the engine's settings, and the resulting limits of a request."""

from dataclasses import dataclass

from outrider.workers.engine.scheduling.blocks import blocks_needed
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS, check_speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of rounds, and the size of the block pool. `speculation` is the upper limit of a request's own setting.

    `recomputed_tokens`: last tokens of a cached prefix to compute again, since the drafter needs their hidden states.
    `may_skip_drafter`: the drafter need not be called after rounds whose sequences have no drafts.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_model_len: int
    lanes: int = 1
    data_groups: int = 1  # each has a pool of `num_blocks`
    enable_prefix_caching: bool = True
    speculation: str | int = "auto"
    recomputed_tokens: int = 1
    may_skip_drafter: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
            "num_blocks",
            "max_model_len",
            "lanes",
            "data_groups",
            "recomputed_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_speculation(self.speculation)

    def length_limit(self, request: Request) -> int:
        """Most tokens of one of the request's sequences, prompt included.

        Raises ValueError if the pool is too small for that, or if a resumed output has reached it already.
        """
        longest = self.max_model_len
        if request.params.max_tokens is not None:
            longest = min(longest, len(request.prompt_token_ids) + request.params.max_tokens)
        for output in request.resumed:
            if len(request.prompt_token_ids) + len(output.token_ids) >= longest:
                raise ValueError(f"resume: output {output.index} has {len(output.token_ids)} tokens, and is complete")
        needed = blocks_needed(longest, self.block_size)
        if needed > self.num_blocks:
            raise ValueError(
                f"a sequence of this request may grow to {longest} tokens, {needed} blocks of {self.block_size}, and "
                f"the cache holds {self.num_blocks}: raise kv_cache_memory_bytes, or lower max_tokens or max_model_len"
            )
        return longest

    def draft_ceiling(self, request: Request) -> int:
        """Most drafts per sequence and round; the depth policy chooses up to that."""
        return min(_most_drafts(self.speculation), _most_drafts(request.params.speculation))


def _most_drafts(speculation: str | int | None) -> int:
    if isinstance(speculation, int):
        return speculation
    return 0 if speculation == "off" else MAX_DRAFT_TOKENS
