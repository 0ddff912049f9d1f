"""Structured logs: one JSON object per line, on stderr. Prompts and outputs are never logged."""

import datetime
import json
import logging
import sys
from collections.abc import Mapping

NAMES = ("outrider", "opentelemetry")  # the loggers to show
_FIELDS = "outrider_fields"


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Logs `message` with named values, e.g. request_id, replica, generation."""
    logger.log(level, message, extra={_FIELDS: fields})


class JsonFormatter(logging.Formatter):
    """time, level, logger, event, then the fields in `always`, then the event's own fields."""

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._always = dict(always or {})

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **self._always,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str = "info", **always: object) -> None:
    """Sends the logs of outrider and OpenTelemetry to stderr, from `level` up. `always`: fields of every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(always))
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
