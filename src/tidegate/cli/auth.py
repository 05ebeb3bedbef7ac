"""Who says whose a request is, by the server's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.config import Config, ConfigError

if TYPE_CHECKING:
    from tidegate.hooks import Authorize


def authorizer(settings: Config) -> Authorize | None:
    """What `--auth` says; None: nobody is asked. Blocks. Raises ConfigError."""
    if settings.auth is None:
        return None
    kind, _, where = settings.auth.partition(":")
    make = {"token": _tokens, "jwt": _jwts, "forward": _forward}[kind]
    try:
        return make(where, settings)
    except ImportError as error:
        raise ConfigError(
            f"--auth {kind}: {error.name} is not installed: expected tidegate[auth]"
        ) from None
    except ValueError as error:
        # Where it is says who made the list; what is in it is nobody's to read here.
        raise ConfigError(f"--auth {settings.auth}: {error}") from None


# Each imports what it needs when it is chosen: the packages of the others need not be there.


def _tokens(where: str, _settings: Config) -> Authorize:
    from tidegate.auth.token import TokenFile, Tokens  # noqa: PLC0415

    if where.startswith("env:"):
        return Tokens.from_environment(where.removeprefix("env:"))
    return TokenFile(where)


def _jwts(where: str, settings: Config) -> Authorize:
    from tidegate.auth.jwt import Claims, Tokens  # noqa: PLC0415
    from tidegate.auth.keys import FetchedKeys, FixedKeys  # noqa: PLC0415

    claims = Claims(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway=settings.jwt_leeway or 0.0,
        required=settings.jwt_require,
        principal=settings.jwt_principal,
        max_size=settings.jwt_max_size,
    )
    if where.startswith(("http:", "https:")):
        return Tokens(FetchedKeys(where), claims)
    return Tokens(FixedKeys.from_file(where), claims)


def _forward(where: str, settings: Config) -> Authorize:
    from tidegate.auth.forward import ForwardAuth  # noqa: PLC0415

    return ForwardAuth(
        where,
        principal=settings.forward_principal,
        send=settings.forward_send,
        pass_back=settings.forward_return,
        timeout=settings.auth_timeout,
    )
