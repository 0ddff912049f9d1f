"""Names of a cluster's actors and placement groups in Ray, by which they are found after a crash."""


def prefix(cluster: str) -> str:
    """Prefix of all names of a cluster."""
    return f"outrider:{cluster}:"


def controller_name(cluster: str) -> str:
    return f"{prefix(cluster)}controller"


def gang_prefix(cluster: str, replica: str, generation: int) -> str:
    """Prefix of the names of one generation's ranks and placement group."""
    return f"{prefix(cluster)}{replica}:g{generation}:"
