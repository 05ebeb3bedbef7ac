"""How the settings of events are written, and what is said of those that are written wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.config import Config, events
from tidegate.protocol.model import EventType

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (events.parse_webhook, "ftp://e.org/", "http:// or https://"),
        (events.parse_webhook, "e.org", "http:// or https://"),
        (events.parse_webhook, "http://e.org:x/", "http:// or https://"),
        (events.parse_webhook, "http:///x", "http:// or https://"),
        (events.parse_webhook, "http://é.org/", "percent-encoded"),
        (events.parse_webhook, "http://e.org/\x7f", "percent-encoded"),
        (events.parse_event, "finished", "expected created, completed"),
        (events.parse_command, " ", "no words"),
        (events.parse_command, "tell 'me", "split into words"),
        (events.parse_timeout, "never", "at most 1h"),
        (events.parse_timeout, "61m", "at most 1h"),
        (events.parse_timeout, "soon", "not a length of time"),
        (events.parse_interval, "never", "leave progress out"),
    ],
)
def test_wrong_settings(parse: Callable[[str], object], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_webhook_is_not_shown() -> None:
    with pytest.raises(ValueError) as raised:
        events.parse_webhook("htp://user:password@e.org/")
    assert "password" not in str(raised.value)


def test_what_anyone_wants() -> None:
    everything = {each for each in EventType if each is not EventType.PROGRESS}
    assert Config().wanted_events == set()
    assert Config(webhook=("http://e.org",)).wanted_events == everything
    assert Config(on_event_command="x").wanted_events == everything
    both = Config(
        webhook=("http://e.org",),
        webhook_events=("created",),
        on_event_command="x",
        command_events=("progress", "completed"),
    )
    assert both.wanted_events == {EventType.CREATED, EventType.PROGRESS, EventType.COMPLETED}
