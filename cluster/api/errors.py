"""What a client may hear from a cluster, as exceptions. An engine's OverloadedError: workers/types/errors.py."""

from outrider.workers.types.errors import OutriderError


class InvalidRequestError(OutriderError, ValueError):
    """Something in the request is wrong; the message names the field."""


class DuplicateRequestError(OutriderError):
    """Another live request has this request_id."""


class UnavailableError(OutriderError):
    """The gateway cannot be reached, is draining, or has no replica that is ready. Safe to try again."""


class DeadlineExceededError(OutriderError, TimeoutError):
    """The request's deadline passed before it was done."""


class NotAllowedError(OutriderError):
    """The gateway does not know the caller's token, or the token has no role for what was called."""


class GenerationFailedError(OutriderError):
    """The request failed after it was accepted: a replica ended, or the gateway did."""


class SettingsError(ValueError):
    """An invalid setting, in one line that names it."""
