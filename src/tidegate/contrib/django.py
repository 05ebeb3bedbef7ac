"""tidegate beside Django: dispatched before Django's handler, with Django's own sign-in.

    application = dispatch(get_asgi_application(), "/files", uploads)

Django's handler stores the body of a request, all of it, before anything else happens. So uploads
must not go through it, nor through Django's middleware. Cross-site request forgery needs no token:
what changes something carries fields that a browser sends to another site only after a preflight,
and tidegate never allows credentials in its answer to one.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.contrib import auth
from django.db import close_old_connections
from django.http import HttpRequest, parse_cookie

from tidegate.contrib.mounting import is_below, whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping
    from contextlib import AbstractAsyncContextManager

    from tidegate.hooks import UploadRequest
    from tidegate.transports.asgi import Tidegate

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]
    Lifespan = Callable[[Application], AbstractAsyncContextManager[None]]

__all__ = ["database", "dispatch", "get_user"]


def dispatch(
    application: Application, path: str, uploads: Tidegate, *, lifespan: Lifespan | None = None
) -> Application:
    """An application that gives what is at or below `path` to `uploads`, all else to `application`.

    Django has no lifespan: the server's opens and closes `uploads`, unless there is a `lifespan`
    for more than that, which is then to say `async with uploads:` itself.
    """
    mount = "/" + path.strip("/")

    async def dispatched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if lifespan is None:
                await uploads(scope, receive, send)
            else:
                await _live(lifespan(dispatched), receive, send)
            return
        if scope["type"] == "http":
            called = whole(scope)
            root = called["root_path"] + mount
            if is_below(root, called["path"]):
                await uploads({**called, "root_path": root}, receive, send)
                return
        await application(scope, receive, send)

    return dispatched


async def _live(life: AbstractAsyncContextManager[None], receive: Receive, send: Send) -> None:
    """A server's lifespan, from its first message to its last. Raises what `life` raises."""
    await receive()
    phase = "startup"
    try:
        async with life:
            await send({"type": "lifespan.startup.complete"})
            await receive()
            phase = "shutdown"
    except Exception as error:
        # Without this message servers take it for an application that has no lifespan.
        message = f"{type(error).__name__}: {error}"
        await send({"type": f"lifespan.{phase}.failed", "message": message})
        raise
    await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def database() -> Iterator[None]:
    """Around work with Django's database outside of its requests: old connections are closed.

    Also a decorator, for plain functions; on an event loop it does nothing useful.
    """
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


async def get_user(request: UploadRequest) -> Any:
    """Whom Django's session cookie signs in, as `request.user` would be: maybe an AnonymousUser.

    Raises what Django's session and authentication backends raise.
    """
    cookie = parse_cookie(request.headers.get("Cookie", "")).get(settings.SESSION_COOKIE_NAME)
    async with ThreadSensitiveContext():
        return await sync_to_async(_user)(cookie)


@database()
def _user(session_key: str | None) -> Any:
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    return auth.get_user(request)
