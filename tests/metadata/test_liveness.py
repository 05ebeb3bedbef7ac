"""Locks that the kernel drops when a process dies."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tidegate.metadata.sqlite.liveness import Liveness, Turn, network_filesystem

if TYPE_CHECKING:
    from pathlib import Path


def test_is_alive_while_it_is_open(tmp_path: Path) -> None:
    one, two = Liveness(tmp_path), Liveness(tmp_path)
    assert not one.is_alive(two.holder)
    one.open()
    two.open()
    assert one.is_alive(two.holder)
    assert two.is_alive(one.holder)
    two.close()
    two.close()
    assert not one.is_alive(two.holder)
    one.close()
    assert os.listdir(tmp_path) == []


def test_two_that_ask_at_once_do_not_take_each_other_for_the_holder(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "holder-dead").touch()
    asking = os.open(tmp_path / "holder-dead", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not Liveness(tmp_path).is_alive("dead")
    os.close(asking)


def test_what_cannot_come_alive_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listdir(_: object) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    holder = Liveness(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        with pytest.raises(OSError, match="Input/output error"):
            holder.open()
    assert os.listdir(tmp_path) == []
    (tmp_path / "gate").touch()
    (tmp_path / "turn").mkdir()
    with pytest.raises(IsADirectoryError):
        Turn(tmp_path)


def test_turns_exclude_each_other(tmp_path: Path) -> None:
    mine, other = Turn(tmp_path), Turn(tmp_path)
    with mine.held():
        with pytest.raises(TimeoutError), other.held_within(0.02):
            pass
        # Whoever waits holds the gate, so that nobody overtakes it; and lets it go with the turn.
        got, done = threading.Event(), threading.Event()

        def wait() -> None:
            with other.held():
                got.set()
                done.wait(10)

        waiting = threading.Thread(target=wait)
        waiting.start()
        third = Turn(tmp_path)
        assert not got.wait(0.02)
    assert got.wait(10)
    with pytest.raises(TimeoutError), third.held_within(0.02):
        pass
    done.set()
    waiting.join()
    with third.held_within(5), pytest.raises(TimeoutError), mine.held_within(0):
        pass
    for turn in (mine, other, third):
        turn.close()


def test_nobody_hogs_the_turn(tmp_path: Path) -> None:
    """One that wants the turn again at once has to stand behind the one that waits."""
    hog, other = Turn(tmp_path), Turn(tmp_path)
    waiting, got = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with other.held():
            got.set()

    thread = threading.Thread(target=wait)
    turns = 0
    with hog.held():
        thread.start()
        waiting.wait(10)
    while not got.is_set():
        with hog.held():
            turns += 1
    thread.join()
    # It may come to the gate a little late, but then it is let in.
    assert turns < 10_000
    hog.close()
    other.close()


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:5 / /dev rw - devtmpfs none rw
40 22 0:40 / {here}/net rw,relatime - nfs4 server:/export rw,vers=4.2
41 40 0:41 / {here}/net/local\\040disk rw - xfs /dev/sdb rw
42 22 0:42 / {here}/over rw - cifs //server/share rw
43 42 0:43 / {here}/over rw - ext4 /dev/sdc rw
44 22 0:44 / {here}/ssh rw shared:9 master:3 - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("", None),
        ("net", "nfs4"),
        ("net/deep/er", "nfs4"),
        ("network", None),
        ("net/local disk/x", None),
        ("over", None),
        ("ssh/x", "fuse.sshfs"),
        ("link/x", "nfs4"),
    ],
)
def test_knows_network_file_systems(tmp_path: Path, folder: str, expected: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(here=tmp_path))
    (tmp_path / "net").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "net")
    assert network_filesystem(tmp_path / folder, str(mounts)) == expected


def test_does_not_know_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert network_filesystem(tmp_path, str(tmp_path / "missing")) is None
