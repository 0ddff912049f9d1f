"""The text of a replica's end reason: the controller writes it, gateways parse it."""

HANGS, HANG = " hangs: ", " hang: "  # separates the ranks' names from what hangs


def is_hang(reason: str) -> bool:
    """Whether this reason says that the replica's rounds hung."""
    return HANGS in reason or HANG in reason
