"""`outrider upgrade`: replaces every replica, one after the other, while the others serve."""

import time

from outrider.cluster.cli.connection import Connection
from outrider.cluster.client.upgrade import Done, DrainOld, ScaleTo, Wait, identities, next_step
from outrider.workers.types.errors import OutriderError

LOOK_EVERY_S = 1.0


def run_upgrade(connection: Connection, *, timeout_s: float) -> None:
    """Raises OutriderError after `timeout_s`. Finished steps stay, so that another run continues the upgrade."""
    until, printed = time.monotonic() + timeout_s, ""
    with connection.client() as client:
        status = client.status()
        old, wanted = identities(status), status.desired_replicas
        while not isinstance(step := next_step(status, old, wanted), Done):
            match step:
                case ScaleTo(replicas):
                    client.scale(replicas)
                    line = f"{replicas} replicas wanted"
                case DrainOld(replica):
                    client.drain(replica)
                    line = f"{replica} drains"
                case Wait(reason):
                    line = f"waiting for {reason}"
                    time.sleep(LOOK_EVERY_S)
            if line != printed:
                print(line, flush=True)  # noqa: T201  # the command's output
            printed = line
            if time.monotonic() > until:
                raise OutriderError(
                    f"not finished within {timeout_s:g} s: {line}; `outrider scale {wanted}` cancels it"
                )
            status = client.status()
    print(f"replaced {len(old)} replicas: {wanted} are ready")  # noqa: T201  # the command's output
