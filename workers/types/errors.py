"""The errors that users see. Each message is one line: what was wrong, where, what to do."""


class OutriderError(Exception):
    """An error that is shown to users as one line, without a traceback."""


class CheckpointError(OutriderError):
    """The model's files are missing, damaged, or of a kind that outrider does not run."""


class EngineStoppedError(OutriderError):
    """The replica ended (a rank died, hung or was stopped) before the request did."""


class OverloadedError(OutriderError):
    """The request was refused because of a limit; it may be retried after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float, cause: str = "") -> None:
        """`cause`: a short name of the limit."""
        super().__init__(message)
        self.retry_after_s, self.cause = retry_after_s, cause
