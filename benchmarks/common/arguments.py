"""Lists in options of a command line."""


def numbers(text: str) -> list[int]:
    """A command line's "1,2,4"."""
    return [int(part) for part in text.split(",") if part]


def words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
