"""Collectives through shared memory, for groups whose ranks are all on one machine."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from outrider.kernels.cpu.shared_group import BrokenGroupError, SharedGroup
from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError, as_rows_of_bytes
from outrider.workers.parallel.collectives.traffic import Traffic


class SharedCollectives:
    """Implements Collectives. `names` are the ranks' names in errors, in group order."""

    name = "shared memory"

    def __init__(self, group: SharedGroup, names: Sequence[str], timeout_s: float) -> None:
        self.rank, self.size = group.rank, group.size
        self.group = group
        self._names, self._timeout_s = names, timeout_s

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        return {purpose: Traffic(*carried) for purpose, carried in self.group.traffic().items()}

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        part = part.contiguous()
        here = root is None or root == self.rank
        out = part.new_empty(self.size if here else 0, *part.shape)
        try:
            size = part.numel() * part.element_size()
            self.group.gather(purpose, part.data_ptr(), size, -1 if root is None else root, out.data_ptr())
        except BrokenGroupError as error:
            raise self.lost(error, purpose) from error
        return out

    def add(self, part: Tensor, purpose: str) -> Tensor:
        """Every rank sums all parts in rank order: one wait instead of the two of reduce-scatter and all-gather."""
        return self.gather(part, purpose).float().sum(dim=0).to(part.dtype)

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        mine = as_rows_of_bytes(sent)
        out = mine.new_empty(sum(received_rows), mine.shape[1])
        sizes = ([rows * mine.shape[1] for rows in each] for each in (sent_rows, received_rows))
        try:
            self.group.exchange(purpose, mine.data_ptr(), next(sizes), out.data_ptr(), next(sizes))
        except BrokenGroupError as error:
            raise self.lost(error, purpose) from error
        return out.view(sent.dtype).view(out.shape[0], *sent.shape[1:])

    def lost(self, error: BrokenGroupError, purpose: str) -> ExchangeBrokenError:
        """The error to raise. It names the rank and the collective."""
        why = "it closed the connection" if error.left else f"nothing came within {self._timeout_s:g} s"
        return ExchangeBrokenError(
            f"{self._names[error.rank]} is gone or late: waiting for its part of the {purpose} failed ({why})"
        )

    def close(self) -> None:
        self.group.close()
