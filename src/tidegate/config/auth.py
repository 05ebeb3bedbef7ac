"""The settings that say who may upload."""

# No annotations as strings here: the command line reads those of the class that inherits these
# settings with the names of its module.
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from tidegate.config.flags import ConfigError, many, one
from tidegate.config.parsers import parse_auth, parse_duration, parse_header

_AUTH = Group("Who may upload", sort_key=2.5)


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Who is asked who may upload, and how. Times are seconds."""

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
            converter=many(str),
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
            converter=many(str),
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
            converter=many(parse_header),
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
            converter=many(parse_header),
            show_default="challenges, redirects",
            metavar="HEADER",
            help="Goes to the client",
        ),
    ] = ("WWW-Authenticate", "Location", "Retry-After")

    def check_auth(self) -> None:
        """Raise ConfigError for what is about another way, or about none."""
        kind = (self.auth or "").partition(":")[0]
        for name, default in vars(AuthConfig).items():
            prefix = name.partition("_")[0]
            if prefix in {"jwt", "forward"} and prefix != kind and getattr(self, name) != default:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} needs --auth {prefix}:..., which it is about")
        if self.auth is None and self.auth_timeout != AuthConfig.auth_timeout:
            raise ConfigError("--auth-timeout needs --auth, which it is about")
