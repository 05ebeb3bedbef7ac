"""All settings of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from tidegate.config.auth import AuthConfig
from tidegate.config.events import EventConfig
from tidegate.config.flags import ConfigError, many, one
from tidegate.config.limits import LimitConfig
from tidegate.config.parsers import (
    parse_base_path,
    parse_durability,
    parse_duration,
    parse_metrics_listen,
    parse_origin,
    parse_port,
    parse_proxy,
    parse_public_url,
    parse_workers,
)
from tidegate.config.stores import STORES, StoreConfig
from tidegate.ports import Durability

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Transport = Literal["native", "asgi"]

_LISTEN = Group("Where it listens", sort_key=1)
_URLS = Group("What clients see", sort_key=2)
WATCH = Group("What operators see", sort_key=5)
PROCESS = Group("The process", sort_key=6)


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class Config(EventConfig, AuthConfig, LimitConfig, StoreConfig):
    """All settings of a server. Raises ConfigError when they do not fit together.

    Sizes are bytes, times are seconds.
    """

    # This machine only: nobody is asked who they are by default, so the network is let in by hand.
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
            converter=many(parse_proxy),
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
            converter=many(parse_origin),
            metavar="ORIGIN",
            help="Sites whose pages may upload, or none",
        ),
    ] = ("*",)

    # What a client was told is complete it deletes; what is unfinished it can send again.
    durability: Annotated[
        Durability,
        Parameter(
            group=STORES,
            converter=one(parse_durability),
            metavar="MODE",
            help="Survives a power cut: complete, ack, none",
        ),
    ] = Durability.COMPLETE

    # Twice the speed at half the processor's time; the other way shares its code with an
    # application that is mounted elsewhere.
    transport: Annotated[
        Transport,
        Parameter(group=PROCESS, metavar="NAME", help="How bytes come in: native or asgi"),
    ] = "native"
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

    # Who uploads what, and how much, is nobody's business who can reach the server: a proxy on the
    # same machine makes every client look like this machine, so not even that one is asked for.
    metrics_listen: Annotated[
        str | None,
        Parameter(
            group=WATCH,
            converter=one(parse_metrics_listen),
            metavar="PLACE",
            help="/metrics at ADDRESS:PORT, or main: for everyone",
        ),
    ] = None
    # They say no more than that the server is there, which is known to who asks.
    health: Annotated[
        bool,
        Parameter(group=WATCH, negative="--no-health", help="Answer at /healthz and /readyz"),
    ] = True
    # What the server speaks is public.
    openapi: Annotated[
        bool,
        Parameter(group=WATCH, negative="--no-openapi", help="Answer at /openapi.json"),
    ] = True
    # A line per request and per thing that went wrong; what happens inside only when asked for.
    log_level: Annotated[
        LogLevel,
        Parameter(group=WATCH, metavar="LEVEL", help="debug, info, warning or error"),
    ] = "info"
    # The first reader is a person at a terminal.
    log_format: Annotated[
        LogFormat, Parameter(group=WATCH, metavar="FORMAT", help="console or json")
    ] = "console"
    # Names of files tell of people.
    log_metadata: Annotated[
        bool,
        Parameter(group=WATCH, help="Log what clients say of their files, as names"),
    ] = False

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        super().__post_init__()
        self.check_auth()
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("key", "cert") if self.tls_cert is None else ("cert", "key")
            raise ConfigError(f"--tls-{given} needs --tls-{missing}: https takes both")
        if self.port and self.metrics_listen == f"{self.host}:{self.port}":
            raise ConfigError(
                f"--metrics-listen {self.metrics_listen}: that is where uploads go: expected another"
                " port, or main"
            )
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
