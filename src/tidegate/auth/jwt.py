"""JSON Web Tokens (RFC 7519) as bearer tokens, verified by PyJWT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import jwt
import msgspec

from tidegate.auth.bearer import bearer_token, invalid
from tidegate.protocol.model import MAX_LENGTH, Principal

if TYPE_CHECKING:
    from tidegate.auth.keys import Key, Keys
    from tidegate.hooks import Authorize, UploadRequest
    from tidegate.protocol.model import Upload

ALWAYS: Final = ("exp",)
"""A token that never ends can't be taken back."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token has to say beside being signed."""

    issuer: str | None = None
    """Must be `iss`; None: whoever has one of the keys is believed."""
    audience: tuple[str, ...] = ()
    """One of them must be in `aud`. Empty: a token that is meant for someone is not for us."""
    leeway: float = 0.0
    """Seconds by which other clocks may be wrong."""
    required: tuple[str, ...] = ()
    """Claims that must be there, beside `exp` and the principal."""
    principal: str = "sub"
    """The claim that names the principal."""
    max_size: str | None = None
    """The claim with the largest upload in bytes, for tokens that have it."""


class Tokens:
    """Verifies JWTs with `keys`, and makes principals of their claims. A context, as the keys are.

    Which algorithms verify a token depends on the key, never on the token.
    """

    def __init__(self, keys: Keys, claims: Claims | None = None) -> None:
        self._keys = keys
        self._claims = claims or Claims()

    async def __aenter__(self) -> Self:
        await self._keys.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._keys.__aexit__(*error)

    async def __call__(self, request: UploadRequest, upload: Upload | None) -> Principal:
        """Whom the request's token names. Raises Denied (401), Refusal (503) without keys."""
        del upload
        token = bearer_token(request)
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise invalid("it is not a JWT") from None
        key_id = head.get("kid")
        keys = [key for key in await self._keys.find(key_id) if head.get("alg") in key.algorithms]
        if not keys:
            raise invalid("no key here verifies it")
        return self._principal(self._verified(token, keys))

    def _verified(self, token: str, keys: list[Key]) -> dict[str, Any]:
        """The claims of a token that one of the keys signed."""
        for key in keys:
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError as error:
                raise invalid(_why(error)) from None
        raise invalid("its signature is not right")

    def _decode(self, token: str, key: Key) -> dict[str, Any]:
        claims = self._claims
        return jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            issuer=claims.issuer,
            audience=list(claims.audience) or None,
            leeway=claims.leeway,
            options={"require": [*ALWAYS, *claims.required]},
        )

    def _principal(self, found: dict[str, Any]) -> Principal:
        claims = self._claims
        size = None if claims.max_size is None else found.get(claims.max_size)
        if size is not None and (type(size) is not int or not 0 <= size <= MAX_LENGTH):
            raise invalid(f"its {claims.max_size} is not a number of bytes")
        name = found.get(claims.principal)
        try:
            if not isinstance(name, str):
                raise TypeError
            return Principal(id=name, max_size=size, claims=found)
        except (TypeError, ValueError):
            raise invalid(f"its {claims.principal} names nobody") from None


def _why(error: jwt.PyJWTError) -> str:
    """What is wrong with a token: of PyJWT's messages some repeat what is in it."""
    match error:
        case jwt.ExpiredSignatureError():
            return "it has expired"
        case jwt.ImmatureSignatureError():
            return "it is not valid yet"
        case jwt.InvalidIssuerError():
            return "it is from another issuer"
        case jwt.InvalidAudienceError():
            return "it is for another audience"
        case jwt.MissingRequiredClaimError():
            return f"it lacks the claim {error.claim}"
        case _:
            return "it is not valid"


if TYPE_CHECKING:

    def _guard(tokens: Tokens) -> Authorize:
        return tokens
