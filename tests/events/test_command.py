"""Commands that are run for each event."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import anyio
import psutil
import pytest
from tests.engine.stage import until
from tests.events.samples import delivery
from tests.support.logs import logs_kept

from tidegate.events import command
from tidegate.events.command import CommandSink, command_name
from tidegate.ports import DeliveryError
from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


def python(code: str) -> CommandSink:
    return CommandSink([sys.executable, "-c", code])


async def test_it_gets_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_WEBHOOK_SECRET", "whsec_x")
    monkeypatch.setenv("OF_THE_SERVER", "yes")
    path = tmp_path / "told"
    sink = python(
        "import os, sys, json\n"
        f"json.dump([json.load(sys.stdin), dict(os.environ)], open({str(path)!r}, 'w'))"
    )
    await sink.open()
    await sink.deliver(delivery(id=UploadId("a b")))
    await sink.close()
    told, environment = json.loads(path.read_text())
    assert told["type"] == "upload.completed"
    ours = {name: value for name, value in environment.items() if name.startswith("TIDEGATE_")}
    assert ours == {
        "TIDEGATE_EVENT": "completed",
        "TIDEGATE_EVENT_KEY": "7-a%20b",
        "TIDEGATE_UPLOAD_ID": "a b",
    }
    assert environment["OF_THE_SERVER"] == "yes"


async def test_no_shell_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    sink = CommandSink([sys.executable, "-c", "pass", f"; touch {path}"])
    await sink.deliver(delivery(metadata="name JCh0b3VjaCB4KQ=="))
    assert not path.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(3)", "ended with 3$"),
        ("print('no room'); raise SystemExit(1)", "ended with 1, and said: no room"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "was killed by signal 40"),
    ],
)
async def test_other_ends_are_failures(code: str, said: str) -> None:
    with pytest.raises(DeliveryError, match=said):
        await python(code).deliver(delivery())


async def test_a_command_that_is_not_there() -> None:
    with pytest.raises(DeliveryError, match="cannot be started: No such file"):
        await CommandSink(["/nonesuch"]).deliver(delivery())


async def test_one_without_words() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        CommandSink([])


async def test_it_need_not_read() -> None:
    await python("").deliver(delivery(metadata="x " + "QUFB" * 100_000))


async def test_the_end_of_what_it_says_is_kept() -> None:
    with logs_kept() as said:
        logging.getLogger("tidegate").setLevel(logging.INFO)
        try:
            await python("print('x' * 10_000_000); print('the end')").deliver(delivery())
        finally:
            logging.getLogger("tidegate").setLevel(logging.NOTSET)
    (line,) = [record.getMessage() for record in said]
    assert line.endswith("the end")
    assert len(line) < command.OUTPUT_BYTES + 100


async def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """Nor killed: it may be meant to go on."""
    path = tmp_path / "pid"
    sink = python(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(path)!r}, 'w').write(str(child.pid))\n"
        "import os; os._exit(0)"
    )
    with anyio.fail_after(20):
        await sink.deliver(delivery())
    child = psutil.Process(int(path.read_text()))
    assert child.is_running()
    # And nothing of it is kept open here.
    assert not [fd for fd in os.listdir("/proc/self/fd") if _is_pipe_of(fd, child.pid)]
    child.kill()
    await until(lambda: not _runs(child.pid))


@pytest.mark.parametrize("stop", [False, True])
async def test_what_takes_too_long_is_killed_with_all_it_started(
    tmp_path: Path, stop: bool
) -> None:
    path = tmp_path / "pids"
    sink = python(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(path)!r} + '~', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(path)!r} + '~', {str(path)!r})\n"
        + ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stop else "")
        + "time.sleep(600)"
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink.deliver, delivery())
        await until(path.exists)
        tasks.cancel_scope.cancel()
    pids = [int(pid) for pid in path.read_text().split()]
    await until(lambda: not any(_runs(pid) for pid in pids))


def _is_pipe_of(descriptor: str, pid: int) -> bool:
    try:
        ours = os.readlink(f"/proc/self/fd/{descriptor}")
        return ours.startswith("pipe:") and ours == os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_names_tell_commands_apart_and_no_secrets() -> None:
    one, two = command_name(["/opt/it.sh", "pw"]), command_name(["/opt/it.sh", "qw"])
    assert one != two
    assert one.startswith("command-it-sh-")
    assert "pw" not in one
    assert os.sep not in one
