"""What a round runs through: some layers of a model."""

from typing import Protocol

from torch import Tensor

from outrider.workers.model.rows import Rows


class StageModel(Protocol):
    """Some layers of a model, with their cache, whichever path computes them."""

    @property
    def cache_bytes_per_block(self) -> int: ...

    def allocate_cache(self, num_blocks: int) -> None:
        """Make room for blocks 0..num_blocks-1. To be called once, before the first round."""
        ...

    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden], None on the first stage, which embeds -> [R, hidden]; the last stage's is normed.

        Lanes, 0 and 1, may run at the same time, in threads of their own, if they take turns.
        """
        ...
