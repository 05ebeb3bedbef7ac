"""The sinks that settings speak of."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.config import ConfigError
from tidegate.protocol.model import EventType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.config.events import EventConfig
    from tidegate.ports import EventSink


def sinks(settings: EventConfig) -> list[EventSink]:
    """Who is told of events, not opened yet. Raises ConfigError."""
    found: list[EventSink] = []
    if settings.webhook:
        found += _webhooks(settings, _secrets(settings))
    if settings.on_event_command:
        found.append(_command(settings, shlex.split(settings.on_event_command)))
    return found


def _webhooks(settings: EventConfig, secrets: Sequence[str]) -> list[EventSink]:
    try:
        from tidegate.events.webhook import WebhookSink  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--webhook needs {error.name}, which is not installed:"
            " pip install 'tidegate[webhooks]'"
        ) from None
    types = [EventType(each) for each in settings.webhook_events]
    # One that stands twice is one.
    urls = dict.fromkeys(settings.webhook)
    return [
        WebhookSink(url, secrets, types=types, timeout=settings.webhook_timeout) for url in urls
    ]


def _secrets(settings: EventConfig) -> list[str]:
    """What signs webhooks. Raises ConfigError, without showing it."""
    from tidegate.events.signing import parse_secret  # noqa: PLC0415

    secrets = [("TIDEGATE_WEBHOOK_SECRET", secret) for secret in settings.webhook_secret]
    if settings.webhook_secret_file is not None:
        path = Path(settings.webhook_secret_file)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ConfigError(
                f"--webhook-secret-file: {path}: cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"--webhook-secret-file: {path}: is not text") from None
        secrets += [
            (f"{path}, line {number}", line)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        ]
    for where, secret in secrets:
        try:
            parse_secret(secret)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    if not secrets:
        raise ConfigError(
            "--webhook needs --webhook-secret-file or TIDEGATE_WEBHOOK_SECRET: what is not signed"
            " anyone can send; make one with: echo whsec_$(openssl rand -base64 32)"
        )
    return [secret for _, secret in secrets]


def _command(settings: EventConfig, words: Sequence[str]) -> EventSink:
    from tidegate.events.command import CommandSink  # noqa: PLC0415

    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"--on-event-command: there is no command {words[0]}, or it may not be run"
        )
    types = [EventType(each) for each in settings.command_events]
    return CommandSink(words, types=types, timeout=settings.command_timeout)
