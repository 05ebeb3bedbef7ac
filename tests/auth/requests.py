"""Requests to be judged, and what was said of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tidegate.hooks import Principal, UploadRequest
from tidegate.protocol.commands import Create
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.errors import Refusal

if TYPE_CHECKING:
    from tidegate.hooks import Authorize


def asking(
    *authorization: str, url: str = "https://tus.test/files/", **headers: str
) -> UploadRequest:
    """A request with some Authorization fields."""
    sent = [(b"authorization", value.encode("latin-1")) for value in authorization]
    sent += [(n.replace("_", "-").lower().encode(), v.encode()) for n, v in headers.items()]
    head = Request(method="POST", path="", headers=sent, url=url, client="192.0.2.1")
    return UploadRequest(Create(), "POST", head)


async def judged(authorize: Authorize, request: UploadRequest) -> Principal | Refusal:
    """Who it is, or why not."""
    try:
        answer = authorize(request, None)
        return await answer if inspect.isawaitable(answer) else answer
    except Refusal as refusal:
        return refusal


async def status(authorize: Authorize, request: UploadRequest) -> int:
    """What the client would get: 200 for someone."""
    answer = await judged(authorize, request)
    return answer.status if isinstance(answer, Refusal) else 200
