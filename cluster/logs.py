"""Structured logs of the control plane: one JSON object a line, on stderr. Prompts and outputs are never logged."""

import datetime
import json
import logging
import sys

_FIELDS = "outrider_fields"


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Logs `message` with named values, e.g. request_id, replica, generation."""
    logger.log(level, message, extra={_FIELDS: fields})


class JsonFormatter(logging.Formatter):
    """time, level, logger, event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str = "info") -> None:
    """Sends everything under the logger `outrider` to stderr, from `level` up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("outrider")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
