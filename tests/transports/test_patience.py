"""How long a client is waited for: in silence, and when it sends too little."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from tidegate.ports import BodyEnd, Buffer
from tidegate.transports import body
from tidegate.transports.body import AsgiBody, Patience

pytestmark = pytest.mark.anyio


class Sink:
    def __init__(self, pause: float = 0) -> None:
        self.content = b""
        self.pause = pause

    async def write(self, chunks: Sequence[Buffer]) -> None:
        await anyio.sleep(self.pause)
        self.content += b"".join(chunks)


def client(*script: float | bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    """One that sends bytes, and pauses; its body is over when nothing follows."""
    rest = list(script)

    async def receive() -> dict[str, Any]:
        while rest and isinstance(rest[0], float):
            await anyio.sleep(rest.pop(0))  # type: ignore[arg-type]
        data = rest.pop(0)
        return {"type": "http.request", "body": data, "more_body": bool(rest)}

    return receive


async def read(patience: Patience, sink: Sink, *script: float | bytes) -> BodyEnd:
    with anyio.fail_after(20):
        return await AsgiBody(client(*script), patience).copy_to(sink, anyio.Event())


async def test_a_client_that_falls_silent_has_stalled() -> None:
    sink = Sink()
    assert await read(Patience(idle=0.05), sink, b"1", b"2", math.inf) is BodyEnd.STALLED
    assert sink.content == b"12"


async def test_a_client_that_sends_nothing_at_all_has_stalled() -> None:
    assert await read(Patience(idle=0.05), Sink(), math.inf) is BodyEnd.STALLED


async def test_silence_is_counted_from_the_last_byte() -> None:
    sink = Sink()
    script = [part for byte in b"1234567890" for part in (0.1, bytes([byte]))]
    assert await read(Patience(idle=2), sink, *script) is BodyEnd.WHOLE
    assert sink.content == b"1234567890"


async def test_time_that_the_server_takes_does_not_count() -> None:
    sink = Sink(pause=0.3)
    assert await read(Patience(idle=0.1), sink, b"1", 0.15, b"2") is BodyEnd.WHOLE
    assert sink.content == b"12"


async def test_a_client_that_sends_too_little_has_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "RATE_WINDOW", 0.2)
    sink = Sink()
    script = [part for _ in range(1000) for part in (0.02, b"x")]
    assert await read(Patience(rate=1000), sink, *script) is BodyEnd.STALLED
    assert 1 <= len(sink.content) < 1000


async def test_a_client_that_sends_enough_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "RATE_WINDOW", 0.05)
    sink = Sink()
    script = [part for _ in range(30) for part in (0.01, b"x" * 100)]
    assert await read(Patience(rate=10), sink, *script) is BodyEnd.WHOLE
    assert len(sink.content) == 3000


async def test_silence_is_noticed_across_looks_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "RATE_WINDOW", 0.05)
    began = anyio.current_time()
    # Enough has come for several windows, but for the last.
    end = await read(Patience(idle=0.02, rate=1), Sink(), b"x" * 10_000, math.inf)
    assert end is BodyEnd.STALLED
    assert anyio.current_time() - began >= 0.02
