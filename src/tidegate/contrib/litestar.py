"""tidegate in Litestar: a mount.

app = Litestar([mount("/files", uploads)], lifespan=[uploads.lifespan])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from litestar.exceptions import NotFoundException
from litestar.handlers import ASGIRouteHandler, asgi
from litestar.types import Receive, Scope, Send

from tidegate.contrib.mounting import whole

if TYPE_CHECKING:
    from tidegate.transports.asgi import Tidegate

__all__ = ["mount"]


def mount(path: str, uploads: Tidegate, **options: Any) -> ASGIRouteHandler:
    """A route handler for all that is at or below `path`, in an application or a router.

    `options` are those of Litestar's `asgi`. Litestar tells an application that is mounted what is
    left of the path, but not where it is mounted, which Location has to say.
    """

    @asgi(path, is_mount=True, copy_scope=True, **options)
    async def tidegate(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/"):
            # For Litestar /files-more is below /files.
            raise NotFoundException
        called = whole(scope)
        root = called["path"].rstrip("/").removesuffix(scope["path"].rstrip("/"))
        # Litestar's types tell every message apart, ASGI's don't.
        await uploads({**called, "root_path": root}, cast("Any", receive), cast("Any", send))

    return tidegate
