"""A line to a server that loses, on demand, a request or its answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

from tests.support.relay import Relay

Loss = Literal["request", "answer", "late", "slow"]
"""What is lost, before the client sees its connection closed.

- `request`: the server never hears of it.
- `answer`: the server has carried it out.
- `late`: the server hears of it at `deliver`.
- `slow`: nothing, and no connection is closed; but the answer comes at `mend_slow`.
"""


class LossyLine(Relay):
    """Passes everything on, but what it was told to lose."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._losses: list[tuple[bytes, Loss]] = []
        self._kept: list[bytes] = []
        self._open = asyncio.Event()
        self._open.set()
        self._quick = asyncio.Event()
        self.lost = 0

    def lose(self, what: bytes, loss: Loss, times: int = 1) -> None:
        """The next requests in which `what` occurs are lost, each with its connection."""
        self._losses += [(what, loss)] * times

    async def deliver(self) -> None:
        """Give the server what was late, and wait until it has answered."""
        reader, writer = await self._connect()
        for request in self._kept:
            writer.write(request)
            await reader.read(65536)
        self._kept.clear()
        self._drop(writer)

    def mend_slow(self) -> None:
        """Pass on the answers that were kept back."""
        self._quick.set()

    def cut(self) -> None:
        """Break all connections, and pass nothing on until `mend`: nobody is told anything."""
        self._open.clear()

    def mend(self) -> None:
        """Pass on again; the connections that were cut are closed."""
        for client in self._clients:
            client.transport.abort()
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        answers, upstream = await self._connect()
        slow = asyncio.Event()
        back = asyncio.create_task(self._pass_back(answers, writer, slow))
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                loss = self._loss(data)
                if loss == "slow":
                    slow.set()
                elif loss is not None:
                    back.cancel()
                    if loss == "answer":
                        upstream.write(data)
                        await self._answered(back, answers)
                    elif loss == "late":
                        self._kept.append(data)
                    self.lost += 1
                    return
                upstream.write(data)
        finally:
            back.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await back
            self._drop(upstream)

    @staticmethod
    async def _answered(back: asyncio.Task[None], answers: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await back
        await answers.read(65536)

    async def _pass_back(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(65536):
                await self._open.wait()
                if slow.is_set():
                    await self._quick.wait()
                writer.write(data)
        writer.transport.abort()

    def _loss(self, data: bytes) -> Loss | None:
        for index, (what, loss) in enumerate(self._losses):
            if what in data:
                del self._losses[index]
                return loss
        return None
