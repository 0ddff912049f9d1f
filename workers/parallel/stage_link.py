"""Rounds go down the pipeline and Verdicts back up: a link carries them between neighbours, with deadlines.

Knows nothing of what the numbers mean, nor of how a message travels.
"""

from dataclasses import dataclass

from torch import Tensor

from outrider.workers.parallel.message import pack, unpack
from outrider.workers.parallel.transport import LinkBrokenError, Transport
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.round import Round, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMessage:
    """One arrival. `content` is a Round or a Verdict; None means the sender stops and so should the receiver."""

    content: Round | Verdict | None
    hidden: Tensor


class StageLink:
    """One direction between this rank and a peer; EngineStoppedError when the peer is gone or late.

    `where` names the peer in errors, e.g. "rank 1 (stage 1)". Hidden states are [rows, width] of the link's dtype.
    """

    def __init__(self, transport: Transport, where: str, timeout_s: float) -> None:
        self._transport, self._where, self._timeout_s = transport, where, timeout_s

    def send(self, content: Round | Verdict | None, hidden: Tensor) -> None:
        """Starts sending, and does not wait for the receiver while there is room. `hidden` may then be reused."""
        try:
            self._transport.announce(self._timeout_s)
            self._transport.send(pack(content), hidden, self._timeout_s)
        except LinkBrokenError as error:
            raise self._lost("sending to", error) from error

    def flush(self) -> None:
        """Waits until what was sent no longer needs this process."""
        try:
            self._transport.flush(self._timeout_s)
        except LinkBrokenError as error:
            raise self._lost("sending to", error) from error

    def receive(self, deadline: bool, waiting_for: str) -> StageMessage:
        """The next message. Without `deadline` it waits for as long as there is nothing to do."""
        try:
            packed, hidden = self._transport.receive(self._timeout_s if deadline else None)
        except LinkBrokenError as error:
            raise self._lost(f"waiting for {waiting_for} from", error) from error
        return StageMessage(content=unpack(packed), hidden=hidden)

    def _lost(self, action: str, error: LinkBrokenError) -> EngineStoppedError:
        return EngineStoppedError(f"{self._where} is gone or late: {action} it failed ({error})")
