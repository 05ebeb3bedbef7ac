"""The body of an ASGI request: order, what is read ahead, and every way in which it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tidegate.ports import BodyEnd
from tidegate.transports.body import BUFFER, AsgiBody

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.ports import Buffer

pytestmark = pytest.mark.anyio


class Server:
    """Hands out messages one by one; after the last it waits, as for a client that is silent."""

    def __init__(self, *messages: bytes | str, turns: int = 1) -> None:
        self.messages = list(messages)
        self.turns = turns
        self.given = 0
        self.cancelled = False

    async def receive(self) -> dict[str, Any]:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if not self.messages:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        message = self.messages.pop(0)
        if message == "drop":
            return {"type": "http.disconnect"}
        if message == "end":
            return {"type": "http.request"}
        assert isinstance(message, bytes)
        self.given += len(message)
        return {"type": "http.request", "body": message, "more_body": True}


class Store:
    """A sink that may be slow, or fail."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.may_go_on = anyio.Event()
        self.may_go_on.set()
        self.busy = anyio.Event()
        self.fails: Exception | None = None

    async def write(self, chunks: Sequence[Buffer]) -> None:
        assert chunks
        assert all(chunks)
        self.busy.set()
        await self.may_go_on.wait()
        if self.fails is not None:
            raise self.fails
        self.batches.append(b"".join(bytes(chunk) for chunk in chunks))

    @property
    def content(self) -> bytes:
        return b"".join(self.batches)


@pytest.fixture
def sink() -> Store:
    return Store()


async def test_all_of_it_in_order(sink: Store) -> None:
    pieces = [bytes([n]) * n for n in range(1, 200)]
    body = AsgiBody(Server(*pieces, "end").receive)
    assert not body.read
    assert await body.copy_to(sink, anyio.Event()) is BodyEnd.WHOLE
    assert sink.content == b"".join(pieces)
    assert body.received == len(sink.content)
    assert body.read


async def test_a_body_in_one_message(sink: Store) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"hello", "more_body": False}

    assert await AsgiBody(receive).copy_to(sink, anyio.Event()) is BodyEnd.WHOLE
    assert sink.content == b"hello"


async def test_no_bytes_at_all(sink: Store) -> None:
    assert await AsgiBody(Server("end").receive).copy_to(sink, anyio.Event()) is BodyEnd.WHOLE
    assert await AsgiBody(Server("drop").receive).copy_to(sink, anyio.Event()) is BodyEnd.DROPPED
    assert sink.batches == []


async def test_empty_messages_are_passed_over(sink: Store) -> None:
    body = AsgiBody(Server(b"", b"a", b"", b"b", "end").receive)
    assert await body.copy_to(sink, anyio.Event()) is BodyEnd.WHOLE
    assert sink.content == b"ab"


async def test_what_came_before_a_drop_is_given(sink: Store) -> None:
    body = AsgiBody(Server(b"hel", b"lo", "drop").receive)
    assert await body.copy_to(sink, anyio.Event()) is BodyEnd.DROPPED
    assert sink.content == b"hello"


async def test_a_slow_store_bounds_what_is_read_ahead(sink: Store) -> None:
    piece = b"x" * 100_000
    server = Server(*[piece] * 100, "end")
    body = AsgiBody(server.receive)
    sink.may_go_on = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body.copy_to, sink, anyio.Event())
        await sink.busy.wait()
        await anyio.wait_all_tasks_blocked()
        # What the store has, what is gathered, and the message that went over it.
        assert BUFFER <= server.given <= 2 * (BUFFER + len(piece))
        sink.may_go_on.set()
    assert sink.content == piece * 100
    assert max(map(len, sink.batches)) <= BUFFER + len(piece)


async def test_what_gathers_while_the_store_is_busy_is_one_batch(sink: Store) -> None:
    sink.may_go_on = anyio.Event()
    body = AsgiBody(Server(*[b"ab"] * 50, "end").receive)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body.copy_to, sink, anyio.Event())
        await sink.busy.wait()
        await anyio.wait_all_tasks_blocked()
        sink.may_go_on.set()
    assert len(sink.batches) <= 3
    assert sink.content == b"ab" * 50


async def test_a_slow_client_has_its_bytes_stored_at_once(sink: Store) -> None:
    body = AsgiBody(Server(b"hello").receive)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body.copy_to, sink, stop)
        await anyio.wait_all_tasks_blocked()
        assert sink.content == b"hello"
        stop.set()


async def test_asked_to_stop_it_stops_although_the_client_is_silent(sink: Store) -> None:
    server = Server(b"hello")
    stop, ends = anyio.Event(), []

    async def copy() -> None:
        ends.append(await AsgiBody(server.receive).copy_to(sink, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(copy)
        await anyio.wait_all_tasks_blocked()
        stop.set()
    assert ends == [BodyEnd.STOPPED]
    assert sink.content == b"hello"
    assert server.cancelled


async def test_asked_to_stop_it_gives_what_it_had_read(sink: Store) -> None:
    piece = b"x" * 100_000
    server = Server(*[piece] * 100, "end")
    sink.may_go_on = anyio.Event()
    stop, ends = anyio.Event(), []

    async def copy() -> None:
        ends.append(await AsgiBody(server.receive).copy_to(sink, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(copy)
        await sink.busy.wait()
        await anyio.wait_all_tasks_blocked()
        stop.set()
        await anyio.wait_all_tasks_blocked()
        read = server.given
        sink.may_go_on.set()
    assert ends == [BodyEnd.STOPPED]
    assert len(sink.content) == read == server.given


async def test_asked_to_stop_it_waits_for_what_the_server_has(sink: Store) -> None:
    """Which takes some turns of the loop to hand it over."""
    stop = anyio.Event()
    stop.set()
    body = AsgiBody(Server(b"hello", turns=4).receive)
    assert await body.copy_to(sink, stop) is BodyEnd.STOPPED
    assert sink.content == b"hello"


async def test_asked_to_stop_before_it_began(sink: Store) -> None:
    stop = anyio.Event()
    stop.set()
    server = Server(*[b"x"] * 100_000)
    assert await AsgiBody(server.receive).copy_to(sink, stop) is BodyEnd.STOPPED
    assert len(server.messages) > 99_000


async def test_whole_is_whole_although_asked_to_stop(sink: Store) -> None:
    sink.may_go_on = anyio.Event()
    stop, ends = anyio.Event(), []

    async def copy() -> None:
        ends.append(await AsgiBody(Server(b"hello", "end").receive).copy_to(sink, stop))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(copy)
        await anyio.wait_all_tasks_blocked()
        stop.set()
        await anyio.wait_all_tasks_blocked()
        sink.may_go_on.set()
    assert ends == [BodyEnd.WHOLE]


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyError("x")])
async def test_what_the_store_raises_comes_out_as_it_is(sink: Store, error: Exception) -> None:
    sink.fails = error
    server = Server(b"hello")
    with pytest.raises(type(error)) as caught:
        await AsgiBody(server.receive).copy_to(sink, anyio.Event())
    assert caught.value is error
    assert server.cancelled


async def test_what_the_server_raises_comes_out_as_it_is(sink: Store) -> None:
    pieces = [b"hello"]

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}
        raise OSError("the connection")

    with pytest.raises(OSError, match="the connection"):
        await AsgiBody(receive).copy_to(sink, anyio.Event())


async def test_cancelled_it_leaves_nothing_behind(sink: Store) -> None:
    server = Server(b"hello")
    before = asyncio.all_tasks()
    with anyio.move_on_after(0.01) as scope:
        await AsgiBody(server.receive).copy_to(sink, anyio.Event())
    assert scope.cancelled_caught
    assert server.cancelled
    assert asyncio.all_tasks() == before
    assert sink.content == b"hello"


async def test_trailers_are_not_to_be_had() -> None:
    with pytest.raises(NotImplementedError):
        AsgiBody(Server().receive).trailing_checksum()
