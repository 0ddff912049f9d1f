"""What a cluster's actors and placement groups are called in Ray: by these names they are found again."""


def prefix(cluster: str) -> str:
    """What the names of everything that belongs to a cluster begin with."""
    return f"outrider:{cluster}:"


def controller_name(cluster: str) -> str:
    return f"{prefix(cluster)}controller"


def gang_prefix(cluster: str, replica: str, generation: int) -> str:
    """What the names of one generation's ranks and placement group begin with."""
    return f"{prefix(cluster)}{replica}:g{generation}:"
