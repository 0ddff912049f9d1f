"""The protocol of a stage's model: some layers."""

from typing import Protocol

from torch import Tensor

from outrider.workers.model.rows import Rows


class StageModel(Protocol):
    """Some layers of a model with their cache. Implemented by each path (torch, compiled, GPU)."""

    @property
    def cache_bytes_per_block(self) -> int: ...

    def allocate_cache(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1. Call once, before the first round."""
        ...

    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden], or None on the first stage, which embeds -> [R, hidden]; normed on the last stage.

        Lanes 0 and 1 may be in progress at the same time, in their own threads, if the threads take turns.
        """
        ...
