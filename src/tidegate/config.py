"""The settings of `tidegate serve`: their types, their defaults, and how they are written.

Each setting is a flag, an environment variable and a key of the TOML file under one name. What is
wrong with a value is said by its parser, where the value came from by the command line.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from cyclopts import Group, Parameter, Token

from tidegate import registry
from tidegate.engine.engine import WEEK
from tidegate.ports import Durability
from tidegate.protocol.capabilities import NEEDS
from tidegate.stores import naming

T = TypeVar("T")

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


class ConfigError(ValueError):
    """Settings that do not fit together, in words for the operator."""


# ------------------------------------------------------------------------------- how they are written

_UNITS: Final = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtp", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST: Final = 36_500 * 86_400
"""A hundred years, in seconds: dates in headers end with the year 9999."""
MOST_WORKERS: Final = 256
"""More than a machine has processors, and fewer than it has memory for."""
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*", re.ASCII)
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes: `1024`, `500MB` (10^6), `10GiB` (2^30), or `unlimited` (None)."""
    if text.strip().lower() == "unlimited":
        return None
    found = _QUANTITY.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        hint = f", say {text.strip()}B or {text.strip()}iB" if _is_bare_unit(found) else ""
        raise ValueError(
            f"{text!r} is not a size{hint}: expected bytes, or a number with"
            " KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024), or unlimited"
        )
    size = int(Decimal(found[1]) * unit)
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte; for no limit say unlimited")
    return size


def _is_bare_unit(found: re.Match[str] | None) -> bool:
    return found is not None and found[2].lower() in set("kmgtp")


def parse_duration(text: str) -> float | None:
    """Seconds: `90`, `90s`, `15m`, `24h`, `7d`, `2w`, or `never` (None)."""
    if text.strip().lower() == "never":
        return None
    found = _QUANTITY.fullmatch(text.strip())
    unit = _SECONDS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"{text!r} is not a length of time: expected seconds, or a number with"
            " s, m, h, d or w (90s, 15m, 24h, 7d), or never"
        )
    seconds = float(Decimal(found[1]) * unit)
    if not 0 < seconds <= LONGEST:
        raise ValueError(
            f"{text!r} is out of range: expected more than 0 and at most 36500d, or never"
        )
    return seconds


def parse_port(text: str) -> int:
    """A TCP port; 0 is any that is free."""
    if text.startswith("tcp://"):
        raise ValueError(
            f"{text!r} is what Kubernetes sets for a service of this name: expected a port from 0"
            " to 65535 (set enableServiceLinks: false, or give --port)"
        )
    if not text.isascii() or not text.isdecimal() or int(text) > 65_535:
        raise ValueError(f"{text!r} is not a port: expected a number from 0 to 65535")
    return int(text)


def parse_workers(text: str) -> int:
    """How many processes."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise ValueError(f"{text!r} is not a number of processes: expected 1 to {MOST_WORKERS}")
    return int(text)


def parse_base_path(text: str) -> str:
    """The path of a URL, with a slash at both ends."""
    path = f"/{text.strip('/')}/" if text.strip("/") else "/"
    if not _PATH.fullmatch(path) or "//" in path or {".", ".."}.intersection(path.split("/")):
        raise ValueError(
            f"{text!r} is not the path of a URL: expected something like /files/,"
            " without ?, #, spaces, empty or dotted parts"
        )
    return path


def parse_public_url(text: str) -> str:
    """An absolute http or https URL, without the slash at its end."""
    try:
        url = urlsplit(text)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        right = False
    if not right or url.query or url.fragment or "@" in url.netloc or not text.isprintable():
        raise ValueError(
            f"{text!r} is not a public URL: expected http:// or https://, a host, and perhaps a"
            " port and a path, like https://example.org"
        )
    return text.rstrip("/")


def parse_proxy(text: str) -> str:
    """An address, a network, or `*`."""
    if text == "*":
        return text
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address of a proxy: expected an IP address (10.0.0.5, ::1), a"
            " network (10.0.0.0/8), or * for whoever connects"
        ) from None
    return text


def parse_origin(text: str) -> str:
    """An origin as browsers send it: `*`, or scheme://host[:port]."""
    if text == "*":
        return text
    expected = "expected *, none, or scheme://host[:port], like https://example.org"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"{text!r} is not an origin: {expected}") from None
    host = url.netloc.lower().rpartition(":")[0] if port is not None else url.netloc.lower()
    if not url.scheme or not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} is not an origin: {expected}")
    origin = f"{url.scheme}://{url.netloc.lower()}"
    if text.lower() != origin:
        raise ValueError(f"{text!r} is more than an origin: expected {origin}, without a path")
    return origin


def parse_extension(text: str) -> str:
    """The name of an extension of tus 1.0.0."""
    if text not in NEEDS:
        raise ValueError(f"{text!r} is not an extension of tus 1.0.0: expected {', '.join(NEEDS)}")
    return text


def parse_durability(text: str) -> Durability:
    """The name of a mode."""
    try:
        return Durability(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a durability: expected {', '.join(Durability)}"
        ) from None


def parse_template(text: str) -> str:
    """How finished files are named: see `naming.Template`."""
    naming.Template(text)
    return text


def parse_items(parse: Callable[[str], T]) -> Callable[[Sequence[str]], tuple[T, ...]]:
    """A parser for lists, of which each text holds one or several, by commas or spaces.

    The one item `none` is the empty list.
    """

    def parse_all(texts: Sequence[str]) -> tuple[T, ...]:
        items = [item for text in texts for item in re.split(r"[\s,]+", text) if item]
        if items == ["none"]:
            return ()
        return tuple(parse(item) for item in items)

    return parse_all


# ------------------------------------------------------------------------------------ the settings

_LISTEN = Group("Where it listens", sort_key=1)
_URLS = Group("What clients see", sort_key=2)
_STORES = Group("What is kept where", sort_key=3)
_LIMITS = Group("What is allowed", sort_key=4)
PROCESS = Group("The process", sort_key=5)


def one(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for a flag with one value: of several, the last counts."""
    return lambda _type, tokens: parse(tokens[-1].value)


def _many(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    parse_all = parse_items(parse)
    return lambda _type, tokens: parse_all([token.value for token in tokens])


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Which stores: what every command that works on uploads has to know."""

    # Where the operator stands, under a name that nothing else uses: seen at once, deleted easily.
    data: Annotated[
        str,
        Parameter(
            group=_STORES,
            converter=one(registry.check_data),
            metavar="URL",
            help="Bytes: a folder, file:PATH or memory:",
        ),
    ] = "tidegate-data"
    # Beside the data (None), so that one folder is moved, backed up or deleted, never half of it.
    metadata: Annotated[
        str | None,
        Parameter(
            group=_STORES,
            converter=one(registry.check_metadata),
            metavar="URL",
            show_default=f"{registry.DATABASE} in data",
            help="Records: a file, or sqlite:PATH",
        ),
    ] = None
    # Short, safe whatever the client calls its file, and no folder grows beyond some thousands.
    file_name: Annotated[
        str,
        Parameter(
            group=_STORES,
            converter=one(parse_template),
            metavar="NAME",
            help="Of finished files: {year}/{id}{ext}",
        ),
    ] = registry.FILE_NAME

    @property
    def metadata_url(self) -> str:
        """Where records live: what was said, or what goes with the data."""
        return self.metadata or registry.default_metadata(self.data)

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        try:
            registry.check_pair(self.data, self.metadata_url)
        except registry.StoreURLError as error:
            raise ConfigError(f"--data and --metadata: {error}") from None


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """All settings of a server. Raises ConfigError when they do not fit together.

    Sizes are bytes, times are seconds.
    """

    # This machine only: there is no login yet, so the network is let in by hand.
    host: Annotated[
        str,
        Parameter(group=_LISTEN, metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all"),
    ] = "127.0.0.1"
    # The port of tusd, and so of the examples of most clients.
    port: Annotated[
        int,
        Parameter(
            group=_LISTEN,
            converter=one(parse_port),
            metavar="PORT",
            help="Port to listen on; 0: any that is free",
        ),
    ] = 1080
    # Port and address can be tried from any program; a socket is for those with a proxy.
    unix_socket: Annotated[
        str | None,
        Parameter(group=_LISTEN, metavar="PATH", help="Listen on a unix socket instead"),
    ] = None
    # A certificate can't be guessed; without one, plain HTTP is for this machine or behind a proxy.
    tls_cert: Annotated[
        str | None,
        Parameter(group=_LISTEN, metavar="FILE", help="Certificate chain (PEM), for https"),
    ] = None
    # Goes with the certificate.
    tls_key: Annotated[
        str | None,
        Parameter(group=_LISTEN, metavar="FILE", help="Private key (PEM), for https"),
    ] = None

    # The path of tusd, and so of the examples of most clients.
    base_path: Annotated[
        str,
        Parameter(
            group=_URLS,
            converter=one(parse_base_path),
            metavar="PATH",
            help="Path under which uploads live",
        ),
    ] = "/files/"
    # What the client called (Host, or a trusted proxy's word) is right in nearly all set-ups.
    public_url: Annotated[
        str | None,
        Parameter(
            group=_URLS,
            converter=one(parse_public_url),
            metavar="URL",
            help="Address that clients use, where Host can't tell",
        ),
    ] = None
    # Absolute, as in every example of the specification: some clients take it as it is.
    relative_location: Annotated[
        bool,
        Parameter(group=_URLS, help="Answer with paths, not with whole URLs"),
    ] = False
    # Anyone can send a Forwarded header, so nobody is believed who was not named.
    behind_proxy: Annotated[
        tuple[str, ...],
        Parameter(
            group=_URLS,
            converter=_many(parse_proxy),
            metavar="NET",
            help="Proxies to trust: addresses, networks, or *",
        ),
    ] = ()
    # No cookie is ever read or allowed, so a page gains nothing that any program could not do.
    cors_origin: Annotated[
        tuple[str, ...],
        Parameter(
            group=_URLS,
            show_default="*",
            converter=_many(parse_origin),
            metavar="ORIGIN",
            help="Sites whose pages may upload, or none",
        ),
    ] = ("*",)

    # What a client was told is complete it deletes; what is unfinished it can send again.
    durability: Annotated[
        Durability,
        Parameter(
            group=_STORES,
            converter=one(parse_durability),
            metavar="MODE",
            help="Survives a power cut: complete, ack, none",
        ),
    ] = Durability.COMPLETE

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
            converter=_many(parse_extension),
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

    # One process fills a common disk or network; more pay where checksums or TLS keep one busy.
    workers: Annotated[
        int,
        Parameter(
            group=PROCESS,
            converter=one(parse_workers),
            metavar="N",
            help="Processes that share the socket and the stores",
        ),
    ] = 1
    # A line per request and per thing that went wrong; what happens inside only when asked for.
    log_level: Annotated[
        LogLevel,
        Parameter(group=PROCESS, metavar="LEVEL", help="debug, info, warning or error"),
    ] = "info"
    # The first reader is a person at a terminal.
    log_format: Annotated[
        LogFormat, Parameter(group=PROCESS, metavar="FORMAT", help="console or json")
    ] = "console"
    # Docker kills 10 s after it asked (Kubernetes 30 s, systemd 90 s): what is left of them is for
    # saving what the requests that were cut off had sent, and for the last sync.
    shutdown_timeout: Annotated[
        float | None,
        Parameter(
            group=PROCESS,
            converter=one(parse_duration),
            metavar="TIME",
            show_default="7s",
            help="For requests to finish at a stop, or never",
        ),
    ] = 7.0

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        super().__post_init__()
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("key", "cert") if self.tls_cert is None else ("cert", "key")
            raise ConfigError(f"--tls-{given} needs --tls-{missing}: https takes both")
        if self.unix_socket is not None:
            if (self.host, self.port) != (Config.host, Config.port):
                raise ConfigError(
                    "--unix-socket and --host or --port: expected one or the other, since a server"
                    " listens on a socket of one kind"
                )
            if self.tls_cert is not None:
                raise ConfigError(
                    "--unix-socket and --tls-cert: expected one or the other; the proxy that"
                    " connects to the socket speaks https"
                )
