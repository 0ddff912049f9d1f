"""A layer whose experts are spread over a stage's ranks, from the view of one rank. Torch-free."""

from collections.abc import Callable
from typing import Protocol

from outrider.workers.experts.placement import IntArray


class ExpertLayer(Protocol):
    """Implemented in PyTorch and by the compiled path."""

    number: int  # of the model's layers

    def take_loads(self) -> IntArray:
        """How many rows of this rank chose each expert since the last call, [experts]. Call it between two rounds."""
        ...

    def prepare(self, table: IntArray) -> Callable[[], None]:
        """Reads the missing experts of this rank's slots. Runs beside the rounds, in any thread, one call at a time.

        `table` [ranks, slots per rank] is the new expert of each slot. Call the returned function between two rounds:
        it routes rows by `table` from then on and frees the experts that left. CheckpointError, with nothing changed,
        if the checkpoint cannot be read.
        """
        ...
