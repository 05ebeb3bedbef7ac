"""Asking the application: who may come in, and whether what is about to happen may."""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
from msgspec.structs import replace

from tidegate.engine.core import log
from tidegate.hooks import Bytes, Changes, Hooks
from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.model import Kind, Principal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from tidegate.hooks import Authorize, UploadRequest
    from tidegate.ports import DataStore
    from tidegate.protocol.model import Upload

T = TypeVar("T")

ASK_AGAIN = 5
"""Seconds after which a client asks again when who decides gave no answer."""


class Gate:
    """Asks `authorize` and the hooks, where there are any. Whatever goes wrong lets nobody in.

    `authorize_within` and `hook_within` are how many seconds each has; None: any.
    """

    def __init__(
        self,
        authorize: Authorize | None,
        hooks: Hooks | None,
        *,
        authorize_within: float | None,
        hook_within: float | None,
    ) -> None:
        self._authorize = authorize
        self._hooks = hooks or Hooks()
        self._authorize_within = authorize_within
        self._hook_within = hook_within
        self.asks = authorize is not None or self._hooks != Hooks()
        """Whether anyone wants to see a request."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have what `authorize` needs for as long as the engine runs."""
        authorize: object = self._authorize
        if isinstance(authorize, AbstractAsyncContextManager):
            async with authorize:
                yield
        else:
            yield

    async def admit(
        self, request: UploadRequest | None, upload: Upload | None
    ) -> UploadRequest | None:
        """The request with its principal. Raises Refusal."""
        authorize = self._authorize
        if authorize is None:
            return request
        if request is None:
            log.error("a command without a request: nobody can be asked whose it is")
            raise _failed()
        try:
            answer = authorize(request, upload)
            if isinstance(answer, Principal):
                return replace(request, principal=answer)
            principal: object = answer
            if inspect.isawaitable(answer):
                principal = await _within(self._authorize_within, answer)
        except Refusal:
            raise
        except TimeoutError:
            log.error("authorize: no answer within %s s", self._authorize_within)
            raise _unanswered() from None
        except Exception as error:
            log.exception("authorize failed")
            raise _failed() from error
        # Whoever forgets to return one lets nobody in.
        if not isinstance(principal, Principal):
            log.error("authorize returned a %s: expected a Principal", type(principal).__name__)
            raise _failed()
        return replace(request, principal=principal)

    async def before_create(self, request: UploadRequest | None, upload: Upload) -> Changes | None:
        """What is to be otherwise with a new upload. Raises Refusal."""
        hook = self._hooks.before_create
        if hook is None or request is None:
            return None
        return await self._ask("before_create", hook(request, upload))

    async def before_terminate(self, request: UploadRequest | None, upload: Upload) -> None:
        """Whether a client may end an upload. Raises Refusal."""
        hook = self._hooks.before_terminate
        if hook is not None and request is not None:
            await self._ask("before_terminate", hook(request, upload))

    def guards(self, kind: Kind) -> bool:
        """Whether a hook is asked before an upload of this kind is complete."""
        return self._hooks.before_complete is not None and kind is not Kind.PARTIAL

    async def before_complete(
        self, data: DataStore, upload: Upload, request: UploadRequest | None
    ) -> None:
        """Whether a whole upload may be complete. Raises Refusal; Denied is the hook's word."""
        hook = self._hooks.before_complete
        if hook is None:
            log.error("upload %s: a hook was to be asked, and there is none here", upload.id)
            raise _unanswered()

        content = Bytes(upload.offset, lambda start, stop: data.read(upload, start, stop))
        try:
            await self._ask("before_complete", hook(upload, content, request))
        finally:
            with anyio.CancelScope(shield=True):
                await content.aclose()

    async def _ask(self, name: str, answer: Awaitable[T]) -> T:
        try:
            return await _within(self._hook_within, answer)
        except Denied:
            raise
        except TimeoutError:
            log.error("%s: no answer within %s s", name, self._hook_within)
            raise _unanswered() from None
        except Exception as error:
            log.exception("%s failed", name)
            raise _unanswered() from error


async def _within(seconds: float | None, answer: Awaitable[T]) -> T:
    with anyio.fail_after(seconds):
        return await answer


def _unanswered() -> Refusal:
    return Refusal(
        Code.UNAVAILABLE, "who decides about this gave no answer; try again", retry_after=ASK_AGAIN
    )


def _failed() -> Refusal:
    return Refusal(Code.INTERNAL, "it could not be decided whether you may do this")
