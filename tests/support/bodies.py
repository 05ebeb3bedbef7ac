"""Bodies of requests that do what a script says: come in pieces, pause, break off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tidegate.ports import BodyEnd
from tidegate.protocol.errors import Code, Refusal

if TYPE_CHECKING:
    from tidegate.ports import Body, Sink
    from tidegate.protocol.commands import Checksum


class Pause:
    """A point at which a body waits until the test lets it go on, or the engine asks it to stop."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.go = anyio.Event()


class ScriptedBody:
    """Gives its `steps` in order, then ends with `end`.

    A `deaf` one never notices that it is asked to stop: a writer that is paused as a whole. With
    `trailer` a checksum comes behind it. `read` tells whether any of it was asked for, `given` how
    many bytes the sink took. While it waits, `feed` and `finish` go on with the script.
    """

    def __init__(
        self,
        *steps: bytes | Pause | Exception,
        end: BodyEnd = BodyEnd.WHOLE,
        deaf: bool = False,
        trailer: Checksum | None = None,
    ) -> None:
        self._steps = list(steps)
        self._end = end
        self._deaf = deaf
        self._trailer = trailer
        self.read = False
        self.given = 0

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """See Body. An exception among the steps is raised: a fault of the transport."""
        self.read = True
        for step in self._steps:
            if stop.is_set() and not self._deaf:
                return BodyEnd.STOPPED
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Pause):
                step.reached.set()
                await self._wait(step.go, stop)
                if stop.is_set() and not self._deaf:
                    return BodyEnd.STOPPED
            else:
                await sink.write([step])
                self.given += len(step)
        return self._end

    def feed(self, *steps: bytes | Pause) -> Pause:
        """Let a body that waits at its last step go on with `steps`, up to a new pause."""
        waiting = self._steps[-1]
        pause = Pause()
        self._steps += [*steps, pause]
        _go(waiting)
        return pause

    def finish(self, end: BodyEnd = BodyEnd.WHOLE, trailer: Checksum | None = None) -> None:
        """Let a body that waits at its last step end."""
        self._end = end
        self._trailer = trailer
        _go(self._steps[-1])

    async def _wait(self, go: anyio.Event, stop: anyio.Event) -> None:
        async with anyio.create_task_group() as tasks:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait, go)
            if not self._deaf:
                tasks.start_soon(wait, stop)

    def trailing_checksum(self) -> Checksum:
        """See Body."""
        if self._trailer is None:
            raise Refusal(Code.BAD_CHECKSUM, "Upload-Checksum: announced, and not in the trailer")
        return self._trailer


def _go(step: bytes | Pause | Exception) -> None:
    assert isinstance(step, Pause), "the script does not wait here"
    step.go.set()


NOTHING = ScriptedBody()
"""The body of a request that has none."""

if TYPE_CHECKING:
    _: type[Body] = ScriptedBody
