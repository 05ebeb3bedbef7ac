"""Log lines: one per event, on stderr, for people or for programs."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.cli.errors import printable
from tidegate.cli.lines import Handler

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from tidegate.config import LogFormat, LogLevel

    Event = MutableMapping[str, Any]

FIELDS: Final = "tidegate"
"""The `extra` of a record whose dictionary becomes fields of the line."""


def configure(level: LogLevel, log_format: LogFormat) -> Handler:
    """Send what all loggers say to stderr, in one form; what does that."""
    handler = Handler(sys.stderr, log_format, colors=sys.stderr.isatty())
    handler.setFormatter(_formatter(log_format, colors=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn tells every step of its start and end; what matters of it we say ourselves.
    quiet = logging.NOTSET if level == "debug" else logging.WARNING
    logging.getLogger("uvicorn.error").setLevel(quiet)
    # They tell of every request, with its URL, in which there may be a password.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # S3's SDK says where it found credentials, and beyond that every step of every request.
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)
    return handler


def announce(text: str, log_format: LogFormat) -> None:
    """Say, whatever the level is, what an operator or a supervisor waits for."""
    if log_format == "console":
        print(text, file=sys.stderr, flush=True)
        return
    record = logging.makeLogRecord(
        {"name": "tidegate", "levelno": logging.INFO, "levelname": "INFO", "msg": text}
    )
    for handler in logging.getLogger().handlers:
        handler.handle(record)


def _formatter(log_format: LogFormat, *, colors: bool) -> logging.Formatter:
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    if log_format == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last.append(
            structlog.dev.ConsoleRenderer(
                colors=colors,
                pad_event_to=0,
                pad_level=False,
                # Not the one that shows the values of local variables.
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_fields,
            _escape,
        ],
        processors=last,
    )


def _add_fields(_logger: object, _name: str, event: Event) -> Event:
    """Add the fields that a record carries, less those that are None."""
    fields = getattr(event.get("_record"), FIELDS, None)
    if isinstance(fields, dict):
        event.update((key, value) for key, value in fields.items() if value is not None)
    return event


def _escape(_logger: object, _name: str, event: Event) -> Event:
    """Let nothing that a client sent end a line or steer a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = printable(value)
    return event
