"""Guards that every test runs under.

Nothing here is about what tidegate does; it is about how: the event loop is never blocked,
a test cleans up after itself, and what CI is meant to run is not skipped in silence.
`test_guards.py` shows that each guard fires.
"""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import gc
import hashlib
import importlib
import io
import os
import socket
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import anyio.pytest_plugin
import asyncpg  # noqa: F401  (gets hold of hashlib's own functions, which it takes for no methods)
import blockbuster.blockbuster
import hypothesis
import pytest
from anyio._backends import _asyncio as anyio_asyncio
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError
from tests.support.s3 import moto_server, s3_credentials, swift_root, swift_server
from tests.support.valkey import Valkey, running

import tidegate

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["moto_server", "s3_credentials", "swift_root", "swift_server"]

PACKAGE = str(Path(tidegate.__file__).parent)

# A digest of this much takes some 20 µs: a header or a token, but not a piece of a body.
SMALL_DIGEST = 16 * 1024
SMALL_SIGNED = 256 * 1024
"""What the SDK of S3 may sign on the loop: a list of a thousand parts or keys."""

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


# ------------------------------------------------------------ blocking calls on the event loop


class BlockingCall(BlockingError):
    """A blocking call, kept also when somebody catches the exception that it raises."""

    seen: list[str] = []  # noqa: RUF012  (one list for all, on purpose)

    def __init__(self, func: str) -> None:
        super().__init__(func)
        self.seen.append(f"{func} at {_where(sys._getframe(1))}")


def _where(frame: FrameType | None) -> str:
    while frame and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    code = frame.f_code
    return f"{os.path.relpath(code.co_filename, PACKAGE)}:{frame.f_lineno} ({code.co_qualname})"


def _descriptor_is_nonblocking(fd: int, *_: object, **__: object) -> bool:
    return not os.get_blocking(fd)


def _descriptors_are_nonblocking(src: int, dst: int, *_: object, **__: object) -> bool:
    return not os.get_blocking(src) and not os.get_blocking(dst)


def _lock_does_not_wait(_fd: object, operation: int, *_: object, **__: object) -> bool:
    return bool(operation & (fcntl.LOCK_NB | fcntl.LOCK_UN))


def _is_small(position: int) -> Callable[..., bool]:
    def predicate(*args: Any, **_: object) -> bool:
        if len(args) <= position:
            return True
        signed = sys._getframe(2).f_code.co_filename.endswith("botocore/auth.py")
        try:
            return memoryview(args[position]).nbytes <= (SMALL_SIGNED if signed else SMALL_DIGEST)
        except TypeError:
            return True

    return predicate


def _is_single_row_read(_self: object, sql: object = None, *_: object, **__: object) -> bool:
    """The one named exemption: a SELECT by the SQLite metadata store, then fetchone."""
    if sql is not None and not str(sql).lstrip().upper().startswith("SELECT"):
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame:
        if frame.f_code.co_filename == f"{PACKAGE}/metadata/sqlite/store.py":
            return True
        frame = frame.f_back
    return False


def _package(path: str) -> ModuleType:
    """A stand-in for a package that blockbuster knows by its path only."""
    module = ModuleType(path)
    module.__path__ = [path]
    return module


def _build_blockbuster() -> BlockBuster:
    # The public conformance checks are run by tests, and may look at files as tests do.
    scanned: list[str | ModuleType] = ["tidegate"]
    excluded: list[str | ModuleType] = [_package(f"{PACKAGE}/testing")]
    bb = BlockBuster(scanned, excluded_modules=excluded)

    def add(
        module: Any, name: str, predicate: Callable[..., bool] = lambda *_, **__: False
    ) -> None:
        if hasattr(module, name):
            bb.functions[f"{module.__name__}.{name}"] = BlockBusterFunction(
                module,
                name,
                scanned_modules=scanned,
                excluded_modules=excluded,
                can_block_predicate=predicate,
                can_block_functions=[
                    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
                    ("asyncio/base_events.py", {"subprocess_exec", "subprocess_shell"}),
                    ("coverage/control.py", {"_should_trace"}),
                ],
            )

    for module in (builtins, io, os):
        add(module, "open")
    for name in (
        # Never used on sockets or pipes, so always a disk.
        "chmod copy_file_range fdatasync fsync ftruncate link lstat makedirs posix_fallocate "
        "pread preadv pwrite pwritev sync truncate utime"
    ).split():
        add(os, name)
    for name in ("readv", "writev"):
        add(os, name, _descriptor_is_nonblocking)
    add(os, "splice", _descriptors_are_nonblocking)
    for name in ("flock", "lockf"):
        add(fcntl, name, _lock_does_not_wait)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        add(socket, name)

    for algorithm in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s"):
        add(hashlib, algorithm, _is_small(0))
    add(hashlib, "new", _is_small(1))
    for name in ("crc32", "adler32"):
        add(zlib, name, _is_small(0))
    for digest in {type(hashlib.sha1()), type(hashlib.blake2b()), type(hashlib.blake2s())}:
        add(digest, "update", _is_small(1))
    for module_name, name, position in (
        ("crc32c", "crc32c", 0),
        ("crc32c", "CRC32CHash.update", 1),
        ("blake3", "blake3.update", 1),
    ):
        try:
            owner: Any = importlib.import_module(module_name)
        except ImportError:
            continue
        *path, attribute = name.split(".")
        for step in path:
            owner = getattr(owner, step)
        add(owner, attribute, _is_small(position))

    # With coverage, the first call of a function waits a moment for another thread's.
    bb.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
    for name in ("Connection.execute", "Cursor.execute", "Cursor.fetchone"):
        bb.functions[f"sqlite3.{name}"].can_block_predicate = _is_single_row_read
    return bb


def _keep_supported(bb: BlockBuster) -> None:
    """`os.open in os.supports_dir_fd` is asked by the standard library: let it stay true."""
    for function in bb.functions.values():
        for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if function.module is os and function.original_func in supported:
                supported.add(getattr(os, function.func_name))


BLOCKBUSTER = pytest.StashKey[BlockBuster]()


def pytest_configure(config: pytest.Config) -> None:
    # Before anything of tidegate but its root is imported: `from os import fsync` in a module
    # must not get hold of the function itself.
    blockbuster.blockbuster.BlockingError = BlockingCall  # type: ignore[misc]
    bb = config.stash[BLOCKBUSTER] = _build_blockbuster()
    bb.activate()
    _keep_supported(bb)
    anyio_asyncio.TestRunner.__exit__ = _exit_and_note_tasks  # type: ignore[method-assign]


def pytest_unconfigure(config: pytest.Config) -> None:
    anyio_asyncio.TestRunner.__exit__ = _exit_test_runner  # type: ignore[method-assign]
    config.stash[BLOCKBUSTER].deactivate()


@pytest.fixture
def blocking_calls() -> list[str]:
    """What was caught so far; a test that means it to happen empties the list."""
    return BlockingCall.seen


# ------------------------------------------------------------ leaks

_exit_test_runner = anyio_asyncio.TestRunner.__exit__
_tasks_cut_short: list[str] = []


def _pending(runner: anyio_asyncio.TestRunner) -> set[asyncio.Task[Any]]:
    """Tasks that don't end by themselves within a moment."""
    loop = runner.get_loop()

    def pending() -> set[asyncio.Task[Any]]:
        return {t for t in asyncio.all_tasks(loop) if t is not runner._runner_task}

    for pause in (0, 0, 0, 0.005, 0.02, 0.1, 0.2):
        if not pending():
            break
        loop.run_until_complete(asyncio.sleep(pause))
    return pending()


def _exit_and_note_tasks(
    self: anyio_asyncio.TestRunner,
    exc_type: type[BaseException] | None,
    exc_val: BaseException | None,
    exc_tb: TracebackType | None,
) -> None:
    # The runner is about to cancel what is left, and nobody would know.
    _tasks_cut_short.extend(repr(task) for task in _pending(self))
    _exit_test_runner(self, exc_type, exc_val, exc_tb)


def _open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listdir itself had open
    return found


def _descriptors_above(before: dict[int, str]) -> list[str]:
    for pause in (0, 0.05, 0.2, 0.5):
        now = _open_descriptors()
        if len(now) <= len(before):
            return []
        time.sleep(pause)
        gc.collect()
    return [f"{fd} -> {target}" for fd, target in now.items() if before.get(fd) != target]


@pytest.fixture(autouse=True)
def guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that blocked the event loop, or that leaves tasks or descriptors behind.

    Being autouse and in the outermost conftest, it is the first function-scoped fixture to be
    set up and the last to be torn down, so what other fixtures clean up is no leak.
    """
    BlockingCall.seen.clear()
    checks_descriptors = sys.platform == "linux"
    before = _open_descriptors() if checks_descriptors else {}
    runner = anyio.pytest_plugin._current_runner
    tasks_before = asyncio.all_tasks(runner.get_loop()) if _is_asyncio(runner) else set()
    yield
    blocked, cut_short = BlockingCall.seen.copy(), _tasks_cut_short.copy()
    BlockingCall.seen.clear()
    _tasks_cut_short.clear()
    if blocked:
        pytest.fail("the event loop was blocked by " + ", ".join(blocked), pytrace=False)
    if request.node.get_closest_marker("leaks_ok"):
        return
    # A runner that is still here is held by an async fixture of a wider scope.
    runner = anyio.pytest_plugin._current_runner
    if _is_asyncio(runner):
        cut_short += [repr(task) for task in _pending(runner) - tasks_before]
    if cut_short:
        pytest.fail("tasks left behind: " + ", ".join(cut_short), pytrace=False)
    if checks_descriptors and (leaked := _descriptors_above(before)):
        pytest.fail("descriptors left open: " + ", ".join(leaked), pytrace=False)


def _is_asyncio(runner: object) -> TypeIs[anyio_asyncio.TestRunner]:
    return isinstance(runner, anyio_asyncio.TestRunner)


@pytest.fixture
def events_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outbox gathers nothing: where events come one by one, and are waited for a thousand times."""
    monkeypatch.setattr("tidegate.engine.outbox.GATHER", 0.0)


# ------------------------------------------------------------ nothing skips in CI


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("TIDEGATE_CI") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} must not skip when TIDEGATE_CI=1. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


# ------------------------------------------------------------ what is begun first

LONGEST = (
    "faults/test_power_loss.py",
    "faults/test_crash.py",
    "faults/test_cluster.py",
    "properties/test_engine_machine.py",
    "faults/test_injected.py",
    "faults/test_workers.py",
    "faults/test_events.py",
)
"""The files that take longest: none of them should be what all other workers of xdist wait for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)),
    )


# ------------------------------------------------------------ servers that tests share


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey that keeps what it acknowledged, for all tests of this process that only use it."""
    with running() as server:
        yield server
