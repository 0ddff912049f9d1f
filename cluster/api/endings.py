"""Why a replica ended, as text that the controller writes and gateways read."""

HANGS, HANG = " hangs: ", " hang: "  # before what hangs


def is_hang(reason: str) -> bool:
    """Whether a replica that ended for this reason had rounds that did not end."""
    return HANGS in reason or HANG in reason
