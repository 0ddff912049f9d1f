"""The errors a user meets. Each message is one line: what was wrong, where, what to do."""


class OutriderError(Exception):
    """What outrider says instead of a traceback."""


class CheckpointError(OutriderError):
    """The model's files are missing, damaged, or of a kind that outrider does not run."""


class EngineStoppedError(OutriderError):
    """The replica ended (a rank died, hung or was stopped) before the request did."""


class OverloadedError(OutriderError):
    """The request was refused for lack of room; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float, cause: str = "") -> None:
        """`cause`: which limit, in a word."""
        super().__init__(message)
        self.retry_after_s, self.cause = retry_after_s, cause
