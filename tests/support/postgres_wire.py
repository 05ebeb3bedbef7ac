"""What stands between a store and PostgreSQL in tests: a line that is cut, and a pooler.

Both know the messages of PostgreSQL's protocol, version 3, and nothing of what is in them but the
text of statements. They run on the test's own event loop.
"""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterable

_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102


class Message(NamedTuple):
    """One message as it is on the wire; a greeting has no kind."""

    kind: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.kind + struct.pack("!i", len(self.body) + 4) + self.body

    @property
    def code(self) -> int:
        """What a greeting wants."""
        return int(struct.unpack_from("!i", self.body)[0])


async def read(stream: asyncio.StreamReader, *, greeting: bool = False) -> Message:
    """The next message. Raises EOFError, OSError."""
    kind = b"" if greeting else await stream.readexactly(1)
    (size,) = struct.unpack("!i", await stream.readexactly(4))
    return Message(kind, await stream.readexactly(size - 4))


async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    """A client's greeting; there is no TLS here."""
    message = await read(reader, greeting=True)
    while message.code == _SSL_REQUEST:
        writer.write(b"N")
        message = await read(reader, greeting=True)
    return message


class CuttingLine(Relay):
    """Passes everything on, until it is told to lose something."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.statements: list[str] = []
        """All that were executed, in order."""
        self.parsed: set[bytes] = set()
        """The names that statements were given."""
        self.down = False
        """Nobody gets through any more. See `cut`."""
        self.refused = 0
        """How many were not let through."""
        self.deaf = False
        """Answers are kept back, and nothing says so."""
        self._lose: tuple[str, bool] | None = None
        self.lost = asyncio.Event()

    def cut(self) -> None:
        """Reset all connections."""
        self.reset()

    def lose_answer(self, text: str) -> None:
        """Cut the line of the next statement with `text` in it, once the server has carried it out."""
        self.lost.clear()
        self._lose = (text, True)

    def lose_request(self, text: str) -> None:
        """Cut the line of the next statement with `text` in it, before the server has it."""
        self.lost.clear()
        self._lose = (text, False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            self.refused += 1
            return
        greeting = await greeted(reader, writer)
        above, below = await self._connect()
        try:
            below.write(greeting.raw)
            answered = asyncio.Event()
            await _first(
                self._up(reader, writer, below, answered), self._down(above, writer, answered)
            )
        finally:
            self._drop(below)

    async def _up(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        below: asyncio.StreamWriter,
        answered: asyncio.Event,
    ) -> None:
        text, texts = "", dict[bytes, str]()
        while True:
            message = await read(reader)
            if message.kind == b"P":
                name, sql, _ = message.body.split(b"\0", 2)
                self.parsed.add(name)
                texts[name] = sql.decode()
            elif message.kind == b"B":
                text = texts[message.body.split(b"\0", 2)[1]]
            elif message.kind == b"Q":
                text = message.body[:-1].decode()
            if message.kind in {b"E", b"Q"}:
                self.statements.append(text)
                if self._lose is not None and self._lose[0] in text:
                    carried_out = self._lose[1]
                    self._lose = None
                    if not carried_out:
                        self.lost.set()
                        return
                    writer.transport.abort()
                    below.write(message.raw + (Message(b"S", b"").raw * (message.kind == b"E")))
                    await answered.wait()
                    self.lost.set()
                    return
            below.write(message.raw)

    async def _down(
        self, above: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        while True:
            message = await read(above)
            if writer.transport.is_closing():
                if message.kind == b"Z":
                    answered.set()
            elif not self.deaf:
                writer.write(message.raw)


class Pooler(Relay):
    """Lends a server's session to a client for one transaction, and forgets all that it left there.

    As pgbouncer does with pool_mode=transaction, with server_reset_query_always, and with the
    worst of luck: no client gets the session that it had before, if there is another one.
    """

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._settings: list[Message] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await greeted(reader, writer)
        if greeting.code == _CANCEL_REQUEST:
            return
        if not self._settings:
            await self._session(greeting)
        key = Message(b"K", struct.pack("!ii", random.randrange(1, 2**31), 7))
        ready = Message(b"Z", b"I")
        for message in (Message(b"R", struct.pack("!i", 0)), *self._settings, key, ready):
            writer.write(message.raw)
        last = None
        while True:
            message = await read(reader)
            if message.kind == b"X":
                return
            if all(session is last for session in self._idle):
                await self._session(greeting)
            last = random.choice([session for session in self._idle if session is not last])
            self._idle.remove(last)
            above, below = last
            below.write(message.raw)
            try:
                await _first(self._up(reader, below), self._transaction(above, writer))
                await self._reset(above, below)
            except BaseException:
                self._drop(below)
                raise
            self._idle.append(last)

    async def _session(self, greeting: Message) -> None:
        """Open another session."""
        above, below = await self._connect()
        below.write(greeting.raw)
        settings: list[Message] = []
        while (message := await read(above)).kind != b"Z":
            if message.kind == b"E":
                raise OSError(message.body)
            if message.kind == b"S":
                settings.append(message)
        self._settings = settings
        self._idle.append((above, below))

    @staticmethod
    async def _up(reader: asyncio.StreamReader, below: asyncio.StreamWriter) -> None:
        while (message := await read(reader)).kind != b"X":
            below.write(message.raw)
        raise EOFError

    @staticmethod
    async def _transaction(above: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            message = await read(above)
            if message.kind == b"A":  # a notification, for whoever had this session before
                continue
            writer.write(message.raw)
            if message == Message(b"Z", b"I"):
                return

    @staticmethod
    async def _reset(above: asyncio.StreamReader, below: asyncio.StreamWriter) -> None:
        below.write(Message(b"Q", b"DISCARD ALL\0").raw)
        while (await read(above)).kind != b"Z":
            pass


async def _first(*work: object) -> None:
    """Do several things until one of them ends; what it raised."""
    tasks = [asyncio.ensure_future(w) for w in work]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def executed(line: CuttingLine, words: Iterable[str]) -> list[str]:
    """The statements that have all `words` in them."""
    return [text for text in line.statements if all(word in text for word in words)]
