"""What all that take bearer tokens (RFC 6750) have in common. A token is in no message and no log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tidegate.protocol.errors import Denied

if TYPE_CHECKING:
    from tidegate.hooks import UploadRequest

TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What a bearer token is made of (RFC 6750, 2.1)."""
_CREDENTIALS: Final = re.compile(rf"(?i:bearer) +({TOKEN.pattern})", re.ASCII)


def bearer_token(request: UploadRequest) -> str:
    """The request's one bearer token. Raises Denied (401)."""
    values = request.sent.values(b"authorization")
    if not values:
        # "If the request lacks any authentication information [...] the resource server SHOULD NOT
        # include an error code" (RFC 6750, 3.1).
        raise Denied(
            401,
            "this needs a bearer token: Authorization: Bearer ...",
            headers={"WWW-Authenticate": 'Bearer realm="tidegate"'},
        )
    found = _CREDENTIALS.fullmatch(values[0])
    if len(values) > 1 or found is None:
        raise invalid("expected one bearer token: Authorization: Bearer ...")
    return found[1]


def invalid(why: str) -> Denied:
    """The refusal of a token; `why` is ASCII, without quotation marks, and has nothing of it."""
    return Denied(
        401,
        f"the bearer token is not accepted: {why}",
        headers={
            "WWW-Authenticate": (
                f'Bearer realm="tidegate", error="invalid_token", error_description="{why}"'
            )
        },
    )
