"""Uploads are cut short in each way that happens, and real clients resume them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.interop.matrix import Client, case
from tests.interop.stage import CHUNK, SIZE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HALF = CHUNK * 5 // 2


def _resumed(stage: Stage) -> None:
    """One upload was created, asked for its offset, and continued there, not at the start."""
    assert len(stage.creations()) == 1, stage.proxy.log()
    assert stage.proxy.sent("HEAD"), stage.proxy.log()
    assert stage.patches()[-1].offset > 0, stage.proxy.log()


def _browser_was_quicker(client: Client, stage: Stage) -> bool:
    """Whether the browser sent the request again by itself, without a word to the client, and a busy
    server came to it before the first one: of which nothing was stored then, so it is all of it.
    """
    twice = [request.offset for request in stage.patches()] == [0, 0]
    return client.in_browser and twice and 204 in stage.answers("PATCH")


@case("abort-resume")
def test_abort_and_resume(client: Client, stage: Stage, tmp_path: Path) -> None:
    """The user stops an upload; later a new run of the client finds it and goes on.

    Where the client can drop a request half way it does, and what had arrived counts. In a
    browser the page is loaded anew in between, and the address comes from local storage.
    """
    options: dict[str, Any] = {"store": str(tmp_path / "urls")}
    if client.pauses:
        with stage.uploading(client, **options, chunk_size=CHUNK, stop_at=2 * CHUNK) as driver:
            first = driver.result()
    else:
        stage.proxy.hold_after(HALF)
        with stage.uploading(client, **options) as driver:
            stage.proxy.wait_held()
            driver.abort()
            first = driver.result()
    assert first.aborted, stage.story(first, driver)
    assert not first.error, stage.story(first, driver)
    begun = stage.located(first)
    stage.wait_until(
        lambda: 0 < int(stage.head(begun).headers["upload-offset"]) < SIZE, "nothing was kept"
    )
    url = stage.upload(client, **options, resume=True)
    assert url == begun
    stage.check_stored(url)
    _resumed(stage)


@case("cut")
def test_line_reset(client: Client, stage: Stage, tmp_path: Path) -> None:
    """The connection breaks in the middle of the one request; the client's own retry resumes."""
    stage.proxy.cut_after(HALF, "reset")
    url = stage.upload(client, retry=True, **_memory(client, tmp_path))
    assert stage.proxy.cuts == 1
    stage.check_stored(url)
    _resumed(stage)


@case("vanished")
def test_line_gone_in_silence(
    client: Client, stage: Stage, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The client lost the network, and the server heard nothing: its request still seems to run.

    The client that comes back is not made to wait for the ghost of its first request.
    """
    stage.proxy.cut_after(HALF, "abandon")
    url = stage.upload(client, retry=True, **_memory(client, tmp_path))
    stage.check_stored(url)
    if _browser_was_quicker(client, stage):
        record_property("instead", "sent again")
        return
    _resumed(stage)
    asked = stage.proxy.sent("HEAD")[0]
    told = next(r for r in stage.proxy.responses if r.status == 200 and r.at > asked.at)
    assert told.at - asked.at < 5, stage.proxy.log()


@case("parallel-cut")
def test_parallel_lines_reset(client: Client, stage: Stage) -> None:
    """Two lines of a parallel upload break; each part resumes by itself, and the whole is right."""
    stage.proxy.cut_after(CHUNK * 3 // 2, "reset", times=2)
    url = stage.upload(client, parallel=3, retry=True)
    assert stage.proxy.cuts == 2
    stage.check_stored(url)
    assert len(stage.creations()) == 4, stage.proxy.log()


@case("restarted")
def test_server_restarted(client: Client, own_stage: Stage, tmp_path: Path) -> None:
    """The server is stopped in the middle of a request, and started on the same data."""
    _interrupted_by_the_server(client, own_stage, tmp_path, kill=False)


@case("killed")
def test_server_killed(client: Client, own_stage: Stage, tmp_path: Path) -> None:
    """The server dies (kill -9) in the middle of a request, and is started on the same data."""
    _interrupted_by_the_server(client, own_stage, tmp_path, kill=True)


def _interrupted_by_the_server(client: Client, stage: Stage, tmp_path: Path, *, kill: bool) -> None:
    """What was acknowledged before the server went is not sent again: the third chunk was under way."""
    stage.proxy.hold_after(HALF)
    options = {"retry": True, "chunk_size": CHUNK, **_memory(client, tmp_path)}
    with stage.uploading(client, **options) as driver:
        stage.proxy.wait_held()
        before = len(stage.patches())
        if kill:
            stage.server.kill()
        else:
            stage.server.stop()
        stage.proxy.release()
        stage.server.start()
        url = stage.success(driver)
    stage.check_stored(url)
    _resumed(stage)
    assert before == 3
    after = [request.offset for request in stage.patches()[before:]]
    assert after, stage.proxy.log()
    assert after[0] >= 2 * CHUNK, stage.proxy.log()


def _memory(client: Client, tmp_path: Path) -> dict[str, str]:
    """go-tus resumes, even within one run, only with a store."""
    return {"store": str(tmp_path / "urls")} if client.name == "go-tus" else {}
