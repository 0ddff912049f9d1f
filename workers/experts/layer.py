"""A layer whose experts are spread over the ranks of a stage, as one of them sees it. Torch-free."""

from collections.abc import Callable
from typing import Protocol

from outrider.workers.experts.placement import IntArray


class ExpertLayer(Protocol):
    """Whichever path computes it."""

    number: int  # of the model's layers

    def take_loads(self) -> IntArray:
        """How many rows of this rank chose each expert since the last call, [experts]. Between two rounds."""
        ...

    def prepare(self, table: IntArray) -> Callable[[], None]:
        """Reads the experts of this rank's slots that it lacks, beside the rounds, in any thread but one at a time.

        `table` [ranks, slots per rank] says which expert is in each slot; what is returned, called between two rounds,
        has rows go by it from then on, and gives back what has left. CheckpointError, and nothing has happened, if
        the checkpoint cannot be read.
        """
        ...
