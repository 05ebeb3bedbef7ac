"""The settings of `tidegate serve` that say who is told of events."""

# No `annotations` of the future here: those of a dataclass that is inherited from are looked up
# where the heir stands.

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from cyclopts import Group, Parameter, Token

from tidegate.config.flags import many, one
from tidegate.config.parsers import parse_duration
from tidegate.protocol.model import STORED_EVENTS, EventType

EVENTS = Group("Who is told", sort_key=4.5)
USUAL: Final = tuple(each.value for each in EventType if each in STORED_EVENTS)
LONGEST_TIMEOUT: Final = 3600.0
"""Seconds: so long, and some more, an event waits that a killed server was delivering."""


def parse_webhook(text: str) -> str:
    """An absolute http or https URL."""
    try:
        url = urlsplit(text)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        right = False
    if not right or not text.isprintable() or not text.isascii():
        # Not what it is: there may be a password in it.
        raise ValueError("a webhook is an http:// or https:// URL, percent-encoded: this is not")
    return text


def parse_event(text: str) -> str:
    """The name of a type of events."""
    if text not in tuple(EventType):
        raise ValueError(f"{text!r} is not a type of events: expected {', '.join(EventType)}")
    return text


def parse_command(text: str) -> str:
    """A command, with words as a shell splits them."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"the command cannot be split into words: {error}") from None
    if not words:
        raise ValueError("the command has no words")
    return text


def parse_timeout(text: str) -> float:
    """Seconds, at most an hour."""
    seconds = parse_duration(text)
    if seconds is None or seconds > LONGEST_TIMEOUT:
        raise ValueError(f"{text!r} is too long: expected at most {LONGEST_TIMEOUT / 3600:g}h")
    return seconds


def parse_interval(text: str) -> float:
    """Seconds, or another length of time."""
    seconds = parse_duration(text)
    if seconds is None:
        raise ValueError("never is no interval: leave progress out of the events that are told")
    return seconds


def _words(parse: Callable[[str], str]) -> Callable[[Any, Sequence[Token]], tuple[str, ...]]:
    # By spaces only: there may be commas in a URL.
    return lambda _type, tokens: tuple(
        parse(word) for token in tokens for word in token.value.split() if word != "none"
    )


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class EventConfig:
    """Who is told of events, and how. Times are seconds."""

    # Nobody: what an application does about uploads is its own.
    webhook: Annotated[
        tuple[str, ...],
        Parameter(
            group=EVENTS,
            converter=_words(parse_webhook),
            metavar="URL",
            help="POST events there, signed (Standard Webhooks)",
        ),
    ] = ()
    # Who can be told by anyone can be lied to by anyone: the scheme knows no unsigned webhooks.
    webhook_secret_file: Annotated[
        str | None,
        Parameter(
            group=EVENTS,
            metavar="FILE",
            help="What signs: whsec_… in lines, the newest first",
        ),
    ] = None
    # For the environment: a command line is shown to every user of a machine.
    webhook_secret: Annotated[
        tuple[str, ...],
        Parameter(
            group=EVENTS,
            converter=_words(str),
            metavar="SECRET",
            help="... by the environment, not by this flag",
        ),
    ] = ()
    # All that is kept until it is delivered.
    webhook_events: Annotated[
        tuple[str, ...],
        Parameter(
            group=EVENTS,
            converter=many(parse_event),
            metavar="TYPE",
            show_default="all but progress",
            help="Which: created, completed…",
        ),
    ] = USUAL
    # Between the 15 and 30 s that Standard Webhooks recommends.
    webhook_timeout: Annotated[
        float,
        Parameter(
            group=EVENTS,
            converter=one(parse_timeout),
            metavar="TIME",
            show_default="20s",
            help="For an answer to come",
        ),
    ] = 20.0
    # As for webhooks.
    on_event_command: Annotated[
        str | None,
        Parameter(
            group=EVENTS,
            converter=one(parse_command),
            metavar="COMMAND",
            help="Run for each event, with JSON on stdin",
        ),
    ] = None
    # As for webhooks.
    command_events: Annotated[
        tuple[str, ...],
        Parameter(
            group=EVENTS,
            converter=many(parse_event),
            metavar="TYPE",
            show_default="all but progress",
            help="Which: created, completed…",
        ),
    ] = USUAL
    # The same; and what takes longer is better put into a queue.
    command_timeout: Annotated[
        float,
        Parameter(
            group=EVENTS,
            converter=one(parse_timeout),
            metavar="TIME",
            show_default="20s",
            help="For the command to end; then it is killed",
        ),
    ] = 20.0
    # As often as people look at a bar that moves slowly.
    progress_every: Annotated[
        float,
        Parameter(
            group=EVENTS,
            converter=one(parse_interval),
            metavar="TIME",
            show_default="5s",
            help="Of one upload at most, to who wants progress",
        ),
    ] = 5.0

    @property
    def wanted_events(self) -> frozenset[EventType]:
        """The types of events that anyone wants."""
        return frozenset(
            EventType(each)
            for wanted in (
                self.webhook_events if self.webhook else (),
                self.command_events if self.on_event_command else (),
            )
            for each in wanted
        )
