"""The settings of `tidegate serve`: their types and their defaults.

Each setting is a flag, an environment variable and a key of the TOML file under one name. What is
wrong with a value is said by its parser, where the value came from by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from tidegate import registry
from tidegate.config_events import EventConfig
from tidegate.config_parsers import (
    parse_auth,
    parse_base_path,
    parse_count,
    parse_durability,
    parse_duration,
    parse_extension,
    parse_header,
    parse_items,
    parse_metrics_listen,
    parse_origin,
    parse_port,
    parse_proxy,
    parse_public_url,
    parse_rate,
    parse_size,
    parse_template,
    parse_workers,
)
from tidegate.config_s3 import S3Config
from tidegate.engine.engine import WEEK
from tidegate.ports import Durability

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Transport = Literal["native", "asgi"]


class ConfigError(ValueError):
    """Settings that do not fit together, in words for the operator."""


# ------------------------------------------------------------------------------------ the settings

_LISTEN = Group("Where it listens", sort_key=1)
_URLS = Group("What clients see", sort_key=2)
_AUTH = Group("Who may upload", sort_key=2.5)
_STORES = Group("What is kept where", sort_key=3)
_LIMITS = Group("What is allowed", sort_key=4)
WATCH = Group("What operators see", sort_key=5)
PROCESS = Group("The process", sort_key=6)


def one(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for a flag with one value: of several, the last counts."""
    return lambda _type, tokens: parse(tokens[-1].value)


def _many(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    parse_all = parse_items(parse)
    return lambda _type, tokens: parse_all([token.value for token in tokens])


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class StoreConfig(S3Config):
    """Which stores: what every command that works on uploads has to know."""

    # Where the operator stands, under a name that nothing else uses: seen at once, deleted easily.
    data: Annotated[
        str,
        Parameter(
            group=_STORES,
            converter=one(registry.check_data),
            metavar="URL",
            help="Bytes: folder, s3://BUCKET or memory:",
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

    @property
    def data_options(self) -> registry.Options:
        """What the data store is told beside its URL."""
        return registry.Options(file_name=self.file_name, s3=self.s3_options)

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        try:
            registry.check_pair(self.data, self.metadata_url)
        except registry.StoreURLError as error:
            raise ConfigError(f"--data and --metadata: {error}") from None
        try:
            self.s3_options.check()
        except ValueError as error:
            raise ConfigError(f"--s3-part-size, --s3-memory, --s3-concurrency: {error}") from None


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class Config(EventConfig, StoreConfig):
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

    # To try it out nobody needs a token, on this machine.
    auth: Annotated[
        str | None,
        Parameter(
            group=_AUTH,
            converter=one(parse_auth),
            metavar="HOW",
            help="token:FILE, jwt:FILE, jwt:URL or forward:URL",
        ),
    ] = None
    # What one client sends is no other's business, unless all of them are one application.
    owners: Annotated[
        bool,
        Parameter(
            group=_AUTH,
            negative="--no-owners",
            help="Hide an upload from all but its maker",
        ),
    ] = True
    # As Settings.authorize_within.
    auth_timeout: Annotated[
        float | None,
        Parameter(
            group=_AUTH,
            converter=one(parse_duration),
            metavar="TIME",
            show_default="5s",
            help="For an answer to who it is, or never",
        ),
    ] = 5.0
    # Which issuer and which audience are right only the operator can know.
    jwt_issuer: Annotated[
        str | None, Parameter(group=_AUTH, metavar="TEXT", help="JWT: what iss must be")
    ] = None
    jwt_audience: Annotated[
        tuple[str, ...],
        Parameter(
            group=_AUTH,
            converter=_many(str),
            metavar="TEXT",
            help="JWT: what aud must name, one of these",
        ),
    ] = ()
    # Machines whose clocks are kept right agree within milliseconds.
    jwt_leeway: Annotated[
        float | None,
        Parameter(
            group=_AUTH,
            converter=one(parse_duration),
            metavar="TIME",
            help="JWT: by which clocks may differ",
        ),
    ] = None
    # "The "sub" (subject) claim identifies the principal that is the subject of the JWT" (RFC 7519).
    jwt_principal: Annotated[
        str, Parameter(group=_AUTH, metavar="CLAIM", help="JWT: names the principal")
    ] = "sub"
    # No claim is registered for it.
    jwt_max_size: Annotated[
        str | None,
        Parameter(group=_AUTH, metavar="CLAIM", help="JWT: the largest upload, in bytes"),
    ] = None
    # Beside exp, and the one with the principal.
    jwt_require: Annotated[
        tuple[str, ...],
        Parameter(
            group=_AUTH,
            converter=_many(str),
            metavar="CLAIM",
            help="JWT: must be there, beside exp",
        ),
    ] = ()
    # What Authelia and Caddy's examples call it.
    forward_principal: Annotated[
        str,
        Parameter(
            group=_AUTH,
            converter=one(parse_header),
            metavar="HEADER",
            help="Names the principal in a 2xx",
        ),
    ] = "Remote-User"
    # What a request proves who it is with.
    forward_send: Annotated[
        tuple[str, ...],
        Parameter(
            group=_AUTH,
            converter=_many(parse_header),
            show_default="Authorization, Cookie",
            metavar="HEADER",
            help="Goes to the service",
        ),
    ] = ("Authorization", "Cookie")
    # How to sign in, and when to come again.
    forward_return: Annotated[
        tuple[str, ...],
        Parameter(
            group=_AUTH,
            converter=_many(parse_header),
            show_default="challenges, redirects",
            metavar="HEADER",
            help="Goes to the client",
        ),
    ] = ("WWW-Authenticate", "Location", "Retry-After")

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
        self._check_auth()
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

    def _check_auth(self) -> None:
        kind = (self.auth or "").partition(":")[0]
        for name, default in vars(Config).items():
            prefix = name.partition("_")[0]
            if prefix in {"jwt", "forward"} and prefix != kind and getattr(self, name) != default:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} needs --auth {prefix}:..., which it is about")
        if self.auth is None and self.auth_timeout != Config.auth_timeout:
            raise ConfigError("--auth-timeout needs --auth, which it is about")
