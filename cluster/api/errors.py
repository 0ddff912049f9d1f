"""Exceptions that a client may raise. OverloadedError is in workers/types/errors.py, since engines raise it too."""

from outrider.workers.types.errors import OutriderError


class InvalidRequestError(OutriderError, ValueError):
    """The request is invalid; the message names the field."""


class DuplicateRequestError(OutriderError):
    """Another live request has this request_id."""


class UnavailableError(OutriderError):
    """The gateway cannot be reached, is draining, or has no ready replica. Safe to retry."""


class DeadlineExceededError(OutriderError, TimeoutError):
    """The request's deadline passed before it finished."""


class NotAllowedError(OutriderError):
    """The gateway does not know the caller's token, or the token lacks the role that the method requires."""


class GenerationFailedError(OutriderError):
    """The request failed after it was accepted, because its replica or its gateway ended."""


class SettingsError(ValueError):
    """An invalid setting, in one line that names it."""
