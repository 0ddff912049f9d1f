"""Links between neighbouring stages: Rounds go down the pipeline, Verdicts back up. With deadlines.

Does not know the meaning of the numbers, nor the transport.
"""

from dataclasses import dataclass

from torch import Tensor

from outrider.workers.parallel.links.message import pack, unpack
from outrider.workers.parallel.links.transport import LinkBrokenError, Transport
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.rounds.round import Round, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMessage:
    """One received message. `content` None: the sender stops, and the receiver must stop too."""

    content: Round | Verdict | None
    hidden: Tensor


class StageLink:
    """One direction between this rank and a peer. EngineStoppedError if the peer is gone or late.

    `where` names the peer in errors, e.g. "rank 1 (stage 1)". Hidden states are [rows, width] of the link's dtype.
    """

    def __init__(self, transport: Transport, where: str, timeout_s: float) -> None:
        self._transport, self._where, self._timeout_s = transport, where, timeout_s

    def send(self, content: Round | Verdict | None, hidden: Tensor) -> None:
        """Starts sending; waits for the receiver only if there is no room. `hidden` may then be reused."""
        try:
            self._transport.announce(self._timeout_s)
            self._transport.send(pack(content), hidden, self._timeout_s)
        except LinkBrokenError as error:
            raise self._lost("sending to", error) from error

    def flush(self) -> None:
        """Waits until sent messages no longer need this process."""
        try:
            self._transport.flush(self._timeout_s)
        except LinkBrokenError as error:
            raise self._lost("sending to", error) from error

    def receive(self, deadline: bool, waiting_for: str) -> StageMessage:
        """The next message. Without `deadline` it waits indefinitely."""
        try:
            packed, hidden = self._transport.receive(self._timeout_s if deadline else None)
        except LinkBrokenError as error:
            raise self._lost(f"waiting for {waiting_for} from", error) from error
        return StageMessage(content=unpack(packed), hidden=hidden)

    def _lost(self, action: str, error: LinkBrokenError) -> EngineStoppedError:
        return EngineStoppedError(f"{self._where} is gone or late: {action} it failed ({error})")
