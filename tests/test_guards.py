"""The guards of conftest.py fire, and only when they should."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from blockbuster import BlockingError

import tidegate

PACKAGE = Path(tidegate.__file__).parent
CONFTEST = Path(__file__).with_name("conftest.py")
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def inside_tidegate(source: str, *, module: str = "stores/fake.py") -> Callable[..., Any]:
    """A function `f` that blockbuster takes for code of the package."""
    namespace: dict[str, Any] = {}
    exec(compile(source, str(PACKAGE / module), "exec"), namespace)
    function = namespace["f"]
    assert callable(function)
    return function  # type: ignore[no-any-return]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


BLOCKING = [
    "import os\ndef f(fd): os.open('/dev/null', os.O_RDONLY)",
    "def f(fd): open('/dev/null')",
    "import pathlib\ndef f(fd): pathlib.Path('/dev/null').read_bytes()",
    "import os\ndef f(fd): os.write(fd, b'x')",
    "import os\ndef f(fd): os.writev(fd, [b'x'])",
    "import os\ndef f(fd): os.pwrite(fd, b'x', 0)",
    "import os\ndef f(fd): os.pwritev(fd, [b'x'], 0)",
    "import os\ndef f(fd): os.read(fd, 1)",
    "import os\ndef f(fd): os.readv(fd, [bytearray(1)])",
    "import os\ndef f(fd): os.pread(fd, 1, 0)",
    "import os\ndef f(fd): os.preadv(fd, [bytearray(1)], 0)",
    "import os\ndef f(fd): os.fsync(fd)",
    "from os import fdatasync\ndef f(fd): fdatasync(fd)",
    "import os\ndef f(fd): os.ftruncate(fd, 0)",
    "import os\ndef f(fd): os.copy_file_range(fd, fd, 0)",
    "import os\ndef f(fd): os.splice(fd, fd, 1)",
    "import os\ndef f(fd): os.rename('/nowhere/a', '/nowhere/b')",
    "import os\ndef f(fd): os.replace('/nowhere/a', '/nowhere/b')",
    "import os\ndef f(fd): os.unlink('/nowhere/a')",
    "import fcntl\ndef f(fd): fcntl.flock(fd, fcntl.LOCK_EX)",
    "import time\ndef f(fd): time.sleep(0)",
    "import socket\ndef f(fd): socket.getaddrinfo('127.0.0.1', 80)",
    "import hashlib\ndef f(fd): hashlib.sha1(bytes(65536))",
    "import hashlib\ndef f(fd): hashlib.new('sha1', bytes(65536))",
    "import hashlib\ndef f(fd): hashlib.sha1().update(bytes(65536))",
    "import hashlib\ndef f(fd): hashlib.md5().update(bytearray(65536))",
    "import hashlib\ndef f(fd): hashlib.sha512().update(memoryview(bytes(65536)))",
    "import hashlib\ndef f(fd): hashlib.blake2b().update(bytes(65536))",
    "import zlib\ndef f(fd): zlib.crc32(bytes(65536))",
    "import crc32c\ndef f(fd): crc32c.crc32c(bytes(65536))",
    "import crc32c\ndef f(fd): crc32c.CRC32CHash().update(bytes(65536))",
    "import blake3\ndef f(fd): blake3.blake3().update(bytes(65536))",
]

HARMLESS = [
    "import hashlib\ndef f(fd): hashlib.sha1(b'a token').update(b'a header')",
    "import zlib\ndef f(fd): zlib.crc32(b'a header')",
    "import fcntl\ndef f(fd): fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "import os\ndef f(fd): os.set_blocking(fd, False), os.write(fd, b'x')",
    "import os\ndef f(fd): os.fstat(fd)",
    "def f(fd):\n    import colorsys",
]


def statement(source: str) -> str:
    return source.partition(": ")[2] or source


@pytest.mark.anyio
@pytest.mark.parametrize("source", BLOCKING, ids=statement)
async def test_a_blocking_call_on_the_loop_is_caught(
    source: str, fd: int, blocking_calls: list[str]
) -> None:
    with pytest.raises(BlockingError):
        inside_tidegate(source)(fd)
    assert re.search(r" at stores/fake\.py:\d \(f\)$", blocking_calls.pop())


@pytest.mark.anyio
@pytest.mark.parametrize("source", HARMLESS, ids=statement)
async def test_what_does_not_wait_may_run_on_the_loop(source: str, fd: int) -> None:
    inside_tidegate(source)(fd)


@pytest.mark.anyio
async def test_threads_may_block(fd: int) -> None:
    await asyncio.to_thread(inside_tidegate(BLOCKING[5]), fd)


def test_code_outside_a_loop_may_block(fd: int) -> None:
    inside_tidegate(BLOCKING[5])(fd)


@pytest.mark.anyio
async def test_tests_themselves_may_block(fd: int) -> None:
    os.fsync(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    hashlib.sha256(bytes(1 << 20))


@pytest.mark.anyio
async def test_the_conformance_checks_may_block_but_not_what_they_check(
    fd: int, blocking_calls: list[str]
) -> None:
    inside_tidegate("import os\ndef f(fd): os.fsync(fd)", module="testing/fake.py")(fd)
    check = inside_tidegate("def f(store, fd): store(fd)", module="testing/fake.py")
    with pytest.raises(BlockingError):
        check(inside_tidegate("import os\ndef f(fd): os.fsync(fd)"), fd)
    blocking_calls.clear()


@pytest.mark.anyio
async def test_a_lock_that_is_held_elsewhere_is_caught(blocking_calls: list[str]) -> None:
    lock = threading.Lock()
    lock.acquire()
    with pytest.raises(BlockingError):
        inside_tidegate("def f(lock): lock.acquire()")(lock)
    lock.release()
    inside_tidegate("def f(lock): lock.acquire()")(lock)
    blocking_calls.clear()


@pytest.mark.anyio
async def test_sqlite_on_the_loop_is_for_single_rows_read_by_the_metadata_store(
    blocking_calls: list[str],
) -> None:
    read = "def f(db): return db.execute('SELECT 1').fetchone()"
    read_all = "def f(db): return db.execute('SELECT 1').fetchall()"
    write = "def f(db): db.execute('CREATE TABLE t (x)')"
    db = sqlite3.connect(":memory:")
    try:
        assert inside_tidegate(read, module="metadata/sqlite/store.py")(db) == (1,)
        for source, module in (
            (read, "metadata/other.py"),
            (read_all, "metadata/sqlite/store.py"),
            (write, "metadata/sqlite/store.py"),
        ):
            with pytest.raises(BlockingError):
                inside_tidegate(source, module=module)(db)
    finally:
        db.close()
    blocking_calls.clear()


@pytest.mark.anyio
async def test_a_subprocess_may_be_started_from_the_loop() -> None:
    start = inside_tidegate(
        "import asyncio\n"
        "async def f(*args):\n"
        "    process = await asyncio.create_subprocess_exec(\n"
        "        *args, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)\n"
        "    return (await process.communicate())[0]\n"
    )
    assert await start("echo", "hello") == b"hello\n"


# What the guards do to a whole test can only be seen from outside of it.

OUTER = """
import asyncio, os
import pytest
import tidegate
from pathlib import Path

kept = []

def inside(source):
    namespace = {}
    exec(compile(source, str(Path(tidegate.__file__).parent / "fake.py"), "exec"), namespace)
    return namespace["f"]

async def forever():
    await asyncio.Event().wait()

@pytest.fixture
async def background():
    task = asyncio.create_task(forever())
    yield task
    task.cancel()

@pytest.fixture(scope="module")
async def wide(anyio_backend):
    yield

@pytest.mark.anyio
async def test_swallowed_block():
    try:
        inside("import os\\ndef f(): os.fsync(0)")()
    except Exception:
        pass

@pytest.mark.anyio
async def test_task_left():
    kept.append(asyncio.create_task(forever()))

@pytest.mark.anyio
@pytest.mark.leaks_ok
async def test_task_left_but_ok():
    kept.append(asyncio.create_task(forever()))

@pytest.mark.anyio
async def test_task_ended_by_its_fixture(background):
    await asyncio.sleep(0)

@pytest.mark.anyio
async def test_task_left_in_a_wide_runner(wide):
    kept.append(asyncio.create_task(forever()))

def test_fd_left():
    kept.append(os.open("/dev/null", os.O_RDONLY))

@pytest.mark.leaks_ok
def test_fd_left_but_ok():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_fd_closed(tmp_path):
    (tmp_path / "x").write_bytes(b"x")

def test_warning():
    import warnings
    warnings.warn("old")

def test_skipped():
    pytest.skip("no browser")

@pytest.mark.skip(reason="no client")
def test_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_expected_failure():
    raise AssertionError
"""

SKIPPED_MODULE = 'import pytest\npytest.importorskip("no_such_module")\n'


def run_pytest(folder: Path, *args: str, ci: str) -> dict[str, str]:
    """Run the files of a folder under our conftest: what became of each test, and why."""
    (folder / "conftest.py").write_bytes(CONFTEST.read_bytes())
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", str(PYPROJECT), "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", "-p", "no:cov", f"--junit-xml={report}", *args]
    subprocess.run(
        [*command, str(folder)],
        env={**os.environ, "TIDEGATE_CI": ci},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        outcome = "; ".join(f"{part.tag}: {part.get('message')}" for part in case)
        outcomes[case.attrib["name"]] = outcome or "passed"
    return outcomes


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    (tmp_path / "test_outer.py").write_text(OUTER)
    (tmp_path / "test_skipped_module.py").write_text(SKIPPED_MODULE)
    return tmp_path


def test_a_test_that_blocks_or_leaks_fails(outer: Path) -> None:
    outcomes = run_pytest(outer, "--deselect=test_skipped_module.py", ci="0")
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome != "passed"}
    assert "the event loop was blocked by os.fsync at fake.py:2 (f)" in wrong.pop(
        "test_swallowed_block"
    )
    assert "tasks left behind: <Task" in wrong.pop("test_task_left")
    assert "tasks left behind: <Task" in wrong.pop("test_task_left_in_a_wide_runner")
    assert re.search(r"descriptors left open: \d+ -> /dev/null", wrong.pop("test_fd_left"))
    assert wrong.pop("test_warning") == "failure: UserWarning: old"
    assert all(outcome.startswith("skipped: ") for outcome in wrong.values()), wrong


def test_a_skip_is_a_failure_in_ci(outer: Path) -> None:
    outcomes = run_pytest(
        outer, "-k", "skipped or marked or expected", "--continue-on-collection-errors", ci="1"
    )
    for name in ("test_skipped", "test_marked"):
        assert f"{name} must not skip when TIDEGATE_CI=1" in outcomes.pop(name)
    assert outcomes.pop("test_expected_failure") == "skipped: known"
    (module,) = outcomes.values()
    assert module.startswith("error: ")


def test_a_skip_is_a_skip_elsewhere(outer: Path) -> None:
    outcomes = run_pytest(outer, "-k", "skipped or marked", ci="0")
    assert len(outcomes) == 3
    assert all(outcome.startswith("skipped: ") for outcome in outcomes.values()), outcomes


# What import-linter can't see of "the protocol is pure".

IMPURE_NAMES = {"open", "input", "print", "exec", "eval"}
IMPURE_MODULES = {"http.client", "http.server", "os.path", "urllib.request"}
CLOCKS = {"now", "utcnow", "today"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "protocol").rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE)
)
def test_the_protocol_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(), path)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(
            node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
        ), where
        if isinstance(node, ast.Import):
            assert not IMPURE_MODULES & {alias.name for alias in node.names}, where
        if isinstance(node, ast.ImportFrom):
            assert node.module not in IMPURE_MODULES, where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_NAMES, where
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            called = (node.func.value.id, node.func.attr)
            assert not (called[0] in {"datetime", "date"} and called[1] in CLOCKS), where
