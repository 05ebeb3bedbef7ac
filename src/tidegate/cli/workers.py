"""Several processes behind one listening socket, and the one that looks after them.

The supervisor is plain blocking code in the process that was started: it binds, forks the workers,
puts another in the place of one that died, and passes on that it is asked to stop. It asks no
worker whether it is well: one that sleeps (SIGSTOP, a disk that hangs) still holds its uploads, and
is left alone.

Between the two there is a pair of sockets per worker. A worker says that it serves, or why it
can't; the supervisor says that it is time to stop; and to each the end of the stream is the death
of the other. Signals would not do: a terminal or systemd sends them to all processes at once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NoReturn

from tidegate.cli.errors import FAILED, Failure

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
STOP: Final = b"s"
HURRY: Final = b"h"
"""From the supervisor: end in order, or as quickly as nothing is lost."""
SERVING: Final = "serving"
FAILED_TO: Final = "failed "
"""From a worker, a line: that it accepts requests, or why it never will."""
LIVED: Final = 1.0
"""Seconds of serving after which a worker's death is news, and no reason to wait: starting one
takes a tenth of that."""
BACK_OFF: Final = (0.0, 0.1, 0.5, 1.0, 5.0)
"""Seconds before another worker follows one that died at once: the first may have been killed, and
the last is what a processor can spare that is wanted for better things."""
TRIES: Final = 3
"""How many workers may die in a row, without a word, before the first of them served."""
CLOSE_WITHIN: Final = 5.0
"""Seconds that a worker may need beyond its time for requests: for those that it cut off to save
what they read (twice server.SAVE_WITHIN), and for the last sync."""
PR_SET_PDEATHSIG: Final = 1
"""From Linux's <sys/prctl.h>."""

log = logging.getLogger("tidegate.server")

Work = Callable[[socket.socket, int], int]
"""What a worker does, and its exit code. It is given its end of the pair, which it reads, and its
place, from 0 on; it calls `serving()`. Raises Failure when it can't."""


def serving(supervisor: socket.socket) -> None:
    """Tell the supervisor that this worker accepts requests."""
    supervisor.sendall(f"{SERVING}\n".encode())


class Worker:
    """One process, as the supervisor sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.serves_since: float | None = None
        self.failure: str | None = None
        self._heard = b""

    def hear(self) -> bool:
        """Take in what it says; whether it lives."""
        try:
            data = self.channel.recv(64 * 1024)
        except ConnectionError:
            data = b""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text == SERVING:
                self.serves_since = time.monotonic()
            else:
                self.failure = text.removeprefix(FAILED_TO)
        return bool(data)

    def tell(self, order: bytes) -> None:
        """Give it an order."""
        try:
            self.channel.send(order)
        except OSError:
            pass  # it is dead, or asleep since so long that the stream is full

    def died(self) -> int:
        """Wait for its end; its exit code, or less than 0: the signal that killed it."""
        self.channel.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def lived(self) -> bool:
        """Whether it served for long enough to say that it can."""
        return self.serves_since is not None and time.monotonic() - self.serves_since > LIVED


class Supervisor:
    """Keeps `count` workers at `work`.

    `sockets` are what they accept from, `shutdown_timeout` is what they go by when they stop (None:
    they take any time).
    """

    def __init__(
        self,
        count: int,
        work: Work,
        *,
        sockets: Sequence[socket.socket],
        announce: Callable[[], None],
        shutdown_timeout: float | None,
    ) -> None:
        self._count = count
        self._work = work
        self._sockets = sockets
        self._announce = announce
        self._announced = False
        self._shutdown_timeout = shutdown_timeout
        self._workers: dict[int, Worker] = {}
        """By place, of which there are `count`."""
        self._due = dict.fromkeys(range(count), 0.0)
        """When to fill the places that are empty."""
        self._deaths = dict.fromkeys(range(count), 0)
        """How many workers of a place died at once, in a row."""
        self._wake, self._waker = socket.socketpair()
        self._signals: list[int] = []
        self._forced = False
        self._kill_at: float | None = None
        self._failure: str | None = None

    def run(self) -> int:
        """Look after the workers until a signal ends it; the exit code. Raises Failure.

        The calling process has one thread.
        """
        with self._handling_signals():
            while self._workers or not self._stopping:
                self._fill()
                self._wait()
                self._kill_late()
        if self._failure is not None:
            raise Failure(self._failure)
        # As a shell tells of a command that a signal ended.
        return 128 + self._signals[1] if len(self._signals) > 1 and self._forced else 0

    @property
    def _stopping(self) -> bool:
        return bool(self._signals) or self._failure is not None

    # ------------------------------------------------------------------------------- workers

    def _fill(self) -> None:
        now = time.monotonic()
        for place, due in list(self._due.items()):
            if due > now or self._stopping:
                continue
            del self._due[place]
            try:
                self._workers[place] = self._start(place)
            except OSError as error:
                if not self._announced:
                    raise Failure(f"cannot start a worker: {error.strerror}") from error
                self._deaths[place] += 1
                self._put_off(place, f"a worker cannot be started: {error.strerror}")

    def _start(self, place: int) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        parent = os.getpid()
        # What is not written yet would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        # No signal may find the child with the supervisor's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                others = [worker.channel for worker in self._workers.values()]
                others += [ours, self._wake, self._waker]
                self._become_worker(place, theirs, parent, others)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        return Worker(pid, ours)

    def _become_worker(
        self,
        place: int,
        supervisor: socket.socket,
        parent: int,
        others: Sequence[socket.socket],
    ) -> NoReturn:
        """Never come back: what the supervisor's stack would clean up is not ours."""
        code = FAILED
        try:
            _die_with(parent)
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                # Until there is a loop to handle them: the supervisor hears them, too.
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for other in others:
                other.close()
            code = self._work(supervisor, place)
        except Failure as failure:
            message = " ".join(str(failure).split())
            supervisor.setblocking(True)
            supervisor.sendall(f"{FAILED_TO}{message}\n".encode())
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _bury(self, place: int) -> None:
        """A worker is dead: see what that means."""
        worker = self._workers.pop(place)
        code = worker.died()
        if self._stopping:
            self._forced = self._forced or code != 0
            return
        how = f"ended with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if worker.failure is not None and not (self._announced and self._serving()):
            self._fail(worker.failure)
            return
        self._deaths[place] = 0 if worker.lived else self._deaths[place] + 1
        if not self._announced and self._deaths[place] >= TRIES:
            self._fail(f"workers die before they serve: the last of {TRIES} {how}")
            return
        what = f"cannot serve: {worker.failure}" if worker.failure else how
        self._put_off(place, f"worker {worker.pid} {what}")

    def _put_off(self, place: int, why: str) -> None:
        """Let another follow in a while."""
        deaths = self._deaths[place]
        pause = BACK_OFF[min(deaths, len(BACK_OFF)) - 1] if deaths else 0
        self._due[place] = time.monotonic() + pause
        log.error("%s; another follows%s", why, f" in {pause:g} s" if pause else "")

    def _serving(self) -> int:
        return sum(worker.serves_since is not None for worker in self._workers.values())

    def _fail(self, message: str) -> None:
        self._failure = message
        self._stop()

    # ---------------------------------------------------------------------------------- events

    def _wait(self) -> None:
        """Wait for what comes next, and see to it."""
        places = {worker.channel.fileno(): place for place, worker in self._workers.items()}
        poll = select.poll()
        for descriptor in (self._wake.fileno(), *places):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(self._milliseconds()):
            if descriptor == self._wake.fileno():
                for number in self._wake.recv(64):
                    self._signalled(number)
                continue
            place = places[descriptor]
            if not self._workers[place].hear():
                self._bury(place)
        if not self._announced and not self._stopping and self._serving() == self._count:
            self._announced = True
            self._announce()

    def _milliseconds(self) -> float | None:
        times = [] if self._stopping else list(self._due.values())
        if self._kill_at is not None:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _signalled(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            # A third one ends this process, and so the workers: they lose nothing acknowledged.
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        self._stop()

    def _stop(self) -> None:
        """Begin to stop; asked again, hurry."""
        # As long as one process has them open they accept.
        for each in self._sockets:
            each.close()
        hurried = len(self._signals) > 1 or self._failure is not None
        for worker in self._workers.values():
            worker.tell(HURRY if hurried else STOP)
        patience = 0.0 if hurried else self._shutdown_timeout
        self._kill_at = None if patience is None else time.monotonic() + patience + CLOSE_WITHIN

    def _kill_late(self) -> None:
        """Kill workers that do not stop: one that sleeps can't, and would keep the files."""
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = None
        for worker in self._workers.values():
            log.warning("worker %d does not stop: killed", worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Signals as bytes of a stream."""
        with self._wake, self._waker:
            self._wake.setblocking(False)
            self._waker.setblocking(False)
            before = {each: signal.signal(each, lambda *_: None) for each in SIGNALS}
            signal.set_wakeup_fd(self._waker.fileno())
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                for each, handler in before.items():
                    signal.signal(each, handler)


def _die_with(parent: int) -> None:
    """Be killed when the supervisor dies, however it does, where the kernel can see to that.

    Elsewhere the end of the stream tells, which a worker that sleeps does not see.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAILED)
