"""What an application decides: who may do what, and what becomes of an upload at its turning points.

`authorize` is asked before every request but OPTIONS, hooks before what they are named after. Each
may raise `Denied`, with a status, headers and a body of its own. They are awaited before a byte of
the request's body is read (but `before_complete`, which comes after the last one), and for as long
as the engine's settings say. What else they raise, or a time-out, lets nobody in: it is logged, and
the client gets a 500 or a 503 with Retry-After.
"""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from tidegate.protocol import fields
from tidegate.protocol.commands import Append, Command, Create, Discover, Download, Inspect
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.errors import Denied, Refusal
from tidegate.protocol.model import Principal, Upload

__all__ = [
    "Action",
    "Authorize",
    "Bytes",
    "Changes",
    "Denied",
    "Headers",
    "Hooks",
    "Principal",
    "Upload",
    "UploadRequest",
    "read_metadata",
]

_ID: Final = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,127}")
_DEEPEST: Final = 8
_COMPONENT_BYTES: Final = 255
"""What common file systems allow for one component of a path (NAME_MAX)."""


class Action(enum.StrEnum):
    """What a request asks for."""

    CREATE = "create"
    APPEND = "append"
    INSPECT = "inspect"
    TERMINATE = "terminate"
    DOWNLOAD = "download"

    @classmethod
    def of(cls, command: Command) -> Action:
        """What a command asks for; nobody is asked about a Discover."""
        match command:
            case Create():
                return cls.CREATE
            case Append():
                return cls.APPEND
            case Inspect():
                return cls.INSPECT
            case Download():
                return cls.DOWNLOAD
            case Discover():
                raise AssertionError
            case _:
                return cls.TERMINATE


class Headers(Mapping[str, str]):
    """The fields of a request by name, in any case; those of one name with commas between them."""

    __slots__ = ("_sent",)

    def __init__(self, sent: Request) -> None:
        self._sent = sent

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def all(self, name: str) -> list[str]:
        """Every value of a name, in the order in which they were sent."""
        return [*self._sent.values(name.lower().encode("latin-1", "replace"))]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self._sent.headers))

    def __len__(self) -> int:
        return len({name for name, _ in self._sent.headers})

    def __repr__(self) -> str:
        # Tokens and cookies are among the values.
        return f"Headers({', '.join(self)})"


class UploadRequest(msgspec.Struct, frozen=True):
    """A request, as those see it who decide about it."""

    command: Command
    """What it means. `command.malformed` is told to the client only once it may come in."""
    method: str
    """The one that counts (X-HTTP-Method-Override)."""
    sent: Request
    """Its head."""
    principal: Principal | None = None
    """Who makes it, once `authorize` said so."""

    @property
    def url(self) -> str:
        """What the client called, as far as we and the trusted proxies know: with scheme and host,
        path and query as they were sent.
        """
        return self.sent.url

    @property
    def headers(self) -> Headers:
        """Its fields."""
        return Headers(self.sent)

    @property
    def client(self) -> str | None:
        """The address of the client."""
        return self.sent.client

    @property
    def scope(self) -> Mapping[str, Any]:
        """What the ASGI server and an application's middleware know of it: `scope["session"]`,
        `scope["user"]`. To be read only; empty under `tidegate serve --transport native`.
        """
        return self.sent.scope

    @property
    def action(self) -> Action:
        """What it asks for."""
        return Action.of(self.command)

    @property
    def path(self) -> str:
        """The path of the URL, percent-encoded as it was sent."""
        return urlsplit(self.url).path

    def __repr__(self) -> str:
        return f"UploadRequest({self.action}, {self.path!r})"


Authorize: TypeAlias = Callable[[UploadRequest, Upload | None], Principal | Awaitable[Principal]]
"""Who makes a request, and whether they may. It gets the record of the upload, if there is one,
whoever it belongs to, as it was when the request came.

Whom it returns an upload must belong to, or it is not there for them: to let somebody at another's
upload, return a principal with that one's id. A plain function is called on the event loop and must
not wait for anything. One that is an async context manager is entered while the server runs."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What `before_create` wants otherwise. None: as it was proposed. Raises ValueError."""

    id: str | None = None
    """1 to 128 of A-Z a-z 0-9 _ - ~ and, not first, dots. Must be new: 409 when it was ever used.
    Whoever can guess it, and may come in, can ask for it."""
    metadata: Mapping[str, bytes] | None = None
    """Takes the place of what the client sent, also in answers to HEAD."""
    name: str | None = None
    """Where the finished bytes are to be, below the store's place for such: a relative path of at
    most 8 parts, none of which begins with a dot. Must be new: an upload whose place is taken can
    not be completed."""
    expire_after: float | None = None
    """Seconds without activity after which the upload is given up."""
    max_size: int | None = None
    """Bytes that it may come to; of this, the server's and the principal's limit the least counts."""

    def __post_init__(self) -> None:
        """Check what ends up in URLs, paths and records."""
        if self.id is not None and not _ID.fullmatch(self.id):
            raise ValueError(f"the id {self.id!r}: expected 1 to 128 URL-safe characters")
        if self.name is not None:
            _check_name(self.name)
        if self.expire_after is not None and not self.expire_after > 0:
            raise ValueError(f"expire_after is {self.expire_after}: expected more than 0 seconds")
        if self.max_size is not None and self.max_size < 0:
            raise ValueError(f"max_size is {self.max_size}: expected 0 or more bytes")
        if self.metadata is not None:
            try:
                fields.render_metadata(self.metadata)
            except Refusal as refusal:
                raise ValueError(refusal.message) from None


def _check_name(name: str) -> None:
    parts = name.split("/")
    if (
        len(parts) > _DEEPEST
        or any(not part or part.startswith(".") for part in parts)
        or any(len(part.encode("utf-8", "surrogatepass")) > _COMPONENT_BYTES for part in parts)
        or not name.isprintable()
        or "\\" in name
    ):
        raise ValueError(
            f"the name {name!r}: expected a relative path of at most {_DEEPEST} parts, of at most"
            f" {_COMPONENT_BYTES} bytes each, without empty, hidden or dotted ones"
        )


class Bytes:
    """The bytes of an upload that is whole and not complete yet, for as long as the hook runs."""

    def __init__(self, size: int, read: Callable[[int, int], AsyncIterator[bytes]]) -> None:
        self.size = size
        self._read = read
        self._reading: list[AsyncIterator[bytes]] = []

    def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes [start, stop) in chunks of at most 1 MiB. Raises DataError, which a hook may let
        pass: it is asked again then.
        """
        stop = self.size if stop is None else min(stop, self.size)
        # Of an upload of nothing the store need not know yet.
        chunks = self._read(start, stop) if start < stop else _nothing()
        self._reading.append(chunks)
        return chunks

    async def first(self, count: int) -> bytes:
        """The first `count` bytes, or all that there are. Raises DataError."""
        return b"".join([chunk async for chunk in self.read(0, count)])

    async def aclose(self) -> None:
        """End what a hook left half read."""
        for chunks in self._reading:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


BeforeCreate: TypeAlias = Callable[[UploadRequest, Upload], Awaitable[Changes | None]]
BeforeComplete: TypeAlias = Callable[[Upload, Bytes, UploadRequest | None], Awaitable[None]]
BeforeTerminate: TypeAlias = Callable[[UploadRequest, Upload], Awaitable[None]]


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked at the turning points of an upload's life; None: nobody is.

    All of them run at least once: when a process dies, or the client goes away, in the middle of
    one, or of what comes after it, it runs again. They may run in any process that has the stores
    open, for different uploads at the same time.
    """

    before_create: BeforeCreate | None = None
    """Gets the request (with its principal) and the upload as it would be made. Raises Denied: there
    is none then. Runs before the body is read, once everything else that can be is decided."""
    before_complete: BeforeComplete | None = None
    """Gets a whole upload before anyone is told that it is, its bytes, which are synced and nobody
    else can read, and the request that brought the last of them; None where there is none, since
    the completion is carried out later: after a crash, or in the background. For regular and final
    uploads; partials are pieces of something that is looked at when it is put together.

    Raises Denied with a 4xx: the upload is terminated, the client gets that answer, and 410 from
    then on. A Denied with a 5xx is no verdict: the client gets it, too, but the upload stays as it
    is, as with any other failure and with a time-out (503 with Retry-After), and the hook is asked
    again by the next request for the upload, and in a while without one. Until it has returned,
    the upload can be neither read nor written; a HEAD waits, then gets 423."""
    before_terminate: BeforeTerminate | None = None
    """Gets the request and the upload that a client wants to end. Raises Denied: it stays. Not asked
    where time, an operator or another hook ends it."""


def read_metadata(upload: Upload) -> dict[str, bytes]:
    """The pairs of an upload's metadata. Whatever is in there is the client's word."""
    return fields.metadata_pairs(upload.metadata)
