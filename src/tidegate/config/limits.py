"""The settings that say what is allowed."""

# No annotations as strings here: the command line reads those of the class that inherits these
# settings with the names of its module.
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from tidegate.config.flags import many, one
from tidegate.config.parsers import (
    parse_count,
    parse_duration,
    parse_extension,
    parse_rate,
    parse_size,
)
from tidegate.engine.engine import WEEK

_LIMITS = Group("What is allowed", sort_key=4)


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """How much, how many, how long, and what at all. Sizes are bytes, times are seconds."""

    # The disk's room is a limit that there is anyway; any number here would be a guess.
    max_size: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_size),
            metavar="SIZE",
            show_default="unlimited",
            help="Largest upload, as 10GiB or 500MB",
        ),
    ] = None
    # Uploads that nobody finishes hold their room until they expire; how much of that is too much
    # depends on the disk.
    max_unfinished: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_size),
            metavar="SIZE",
            show_default="unlimited",
            help="All unfinished uploads together",
        ),
    ] = None
    # None: a data folder often has a disk of its own, which may be filled.
    reserve_disk: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_size),
            metavar="SIZE",
            help="Room on the disk that uploads must leave free",
        ),
    ] = None
    # Twice what we try with. Each may hold a read-ahead of 1 MiB while a disk hangs.
    max_concurrent: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_count),
            metavar="N",
            help="Bodies received at once, or unlimited",
        ),
    ] = 2000
    # A whole office may come from one address.
    max_concurrent_per_client: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_count),
            metavar="N",
            help="... from one address (IPv6: one /64)",
        ),
    ] = None
    # What nginx (client_body_timeout) and most proxies wait between two reads of a body.
    idle_timeout: Annotated[
        float | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_duration),
            metavar="TIME",
            show_default="1m",
            help="For the next byte of a body to come, or never",
        ),
    ] = 60.0
    # The slowest client that should succeed is the operator's to know.
    min_rate: Annotated[
        int | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_rate),
            metavar="SIZE",
            help="Bytes per second that must come, over 30 s",
        ),
    ] = None
    # What Apache's mod_reqtimeout begins with (header=20-40): heads are small, and come at once.
    head_timeout: Annotated[
        float | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_duration),
            metavar="TIME",
            show_default="20s",
            help="For the head of a request to come, or never",
        ),
    ] = 20.0
    # See WEEK.
    expire_after: Annotated[
        float | None,
        Parameter(
            group=_LIMITS,
            converter=one(parse_duration),
            metavar="TIME",
            show_default="7d",
            help="Life of an idle unfinished upload, or never",
        ),
    ] = WEEK
    # All that the stores can do: an extension costs nothing until a client uses it.
    disable: Annotated[
        tuple[str, ...],
        Parameter(
            group=_LIMITS,
            converter=many(parse_extension),
            metavar="NAME",
            help="Extension not to offer, as termination",
        ),
    ] = ()
    # Who knows the unguessable URL uploaded the file, or was given it by who did.
    downloads: Annotated[
        bool,
        Parameter(
            group=_LIMITS,
            negative="--no-downloads",
            help="Give complete uploads back to a GET",
        ),
    ] = True
