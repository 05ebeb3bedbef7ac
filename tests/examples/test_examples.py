"""Each example, as a process of its own: clients sign in, upload, and see what became of it."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import aiotus
import httpx
import psutil
import pytest
from tests.support.examples import ROOT, Example
from tests.support.exchange import STREAM, TUS, SocketClient
from tusclient.client import TusClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


MIB = 1024**2
CHUNK = 64 * 1024
CONTENT = os.urandom(5 * CHUNK + 321)
PATIENCE = 20.0
PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "tus-resumable,upload-length,authorization",
}


def wait_for(what: Callable[[], bool]) -> None:
    """Until it is so."""
    last = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < last, "it did not come"
        time.sleep(0.01)


def stop(server: Example) -> None:
    """In order; uvicorn then ends by the signal itself."""
    assert server.stop() == -signal.SIGTERM, server.tail()
    assert "Application shutdown complete." in server.tail(3)


def uploader(
    server: Example, user: Mapping[str, str], content: bytes = CONTENT, url: str | None = None
) -> Any:
    """An upload with tuspy, whose types are not right."""
    return TusClient(server.endpoint, headers=dict(user)).uploader(
        file_stream=io.BytesIO(content),
        chunk_size=CHUNK,
        metadata={"filename": "übersee.bin"},
        url=url,
    )


def test_the_docstring_says_how_it_is_started(example: Example) -> None:
    text = (ROOT / "examples" / f"{example.name}_app.py").read_text()
    assert f"\n    uvicorn --http h11 {example.application}\n" in text
    assert f"/{example.mounted.strip('/')} with it" in text


def test_the_readme_uploads_as_shown(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert f"    uvicorn --http h11 {Example('fastapi', tmp_path).application}\n" in text
    (tmp_path / "film.mp4").write_bytes(CONTENT)
    with Example("fastapi", tmp_path / "uploads") as server:
        code = code.replace("http://127.0.0.1:8000", server.url)
        said = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=tmp_path,
            timeout=60,
            capture_output=True,
            text=True,
        )
        user = server.sign_in("alice")
        assert httpx.get(said.stdout.strip(), headers=user).content == CONTENT


def test_an_upload_from_sign_in_to_my_files(example: Example) -> None:
    """With tuspy, in chunks, broken off and resumed by another client object."""
    alice, bob = example.sign_in("alice"), example.sign_in("bob")
    first = uploader(example, alice)
    first.upload(stop_at=2 * CHUNK)
    assert first.url.startswith(example.endpoint)
    upload_id = first.url.removeprefix(example.endpoint)
    assert upload_id not in [file["id"] for file in example.my_files(alice)]

    second = uploader(example, alice, url=first.url)
    assert second.offset == 2 * CHUNK
    second.upload()
    got = httpx.get(first.url, headers=alice)
    assert (got.status_code, got.content) == (200, CONTENT)

    file = {"id": upload_id, "name": "übersee.bin"}
    wait_for(lambda: file in example.my_files(alice))
    assert file not in example.my_files(bob)


@pytest.mark.anyio
async def test_an_upload_by_another_client(example: Example) -> None:
    user = example.sign_in("bob")
    url = await aiotus.upload(
        example.endpoint, io.BytesIO(CONTENT), {"filename": b"b.bin"}, headers=user, chunksize=CHUNK
    )
    assert url is not None
    assert httpx.get(str(url), headers=user).content == CONTENT
    file = {"id": str(url).removeprefix(example.endpoint), "name": "b.bin"}
    wait_for(lambda: file in example.my_files(user))


def test_to_another_user_it_is_not_there(example: Example) -> None:
    alice, bob = example.sign_in("alice"), example.sign_in("bob")
    upload = uploader(example, alice)
    upload.upload(stop_at=CHUNK)
    append = TUS | {"Content-Type": STREAM, "Upload-Offset": str(CHUNK)}
    for method, headers in (("HEAD", TUS), ("PATCH", append), ("DELETE", TUS), ("GET", {})):
        content = b"not yours" if method == "PATCH" else None
        reply = httpx.request(method, upload.url, headers={**headers, **bob}, content=content)
        assert reply.status_code == 404, method
    assert httpx.head(upload.url, headers=TUS | alice).headers["Upload-Offset"] == str(CHUNK)


@pytest.mark.anyio
async def test_nobody_uploads_who_has_not_signed_in(example: Example) -> None:
    """The refusal comes though no byte of the body does, and a page may read it."""
    upload = uploader(example, example.sign_in("alice"))
    upload.upload(stop_at=CHUNK)
    client = SocketClient("127.0.0.1", example.port)
    path = example.mounted + upload.url.removeprefix(example.endpoint)
    origin = {"Origin": "https://page.example"}
    requests = {
        ("POST", example.mounted): {"Upload-Length": "100"},
        ("PATCH", path): {"Upload-Offset": str(CHUNK)},
    }
    for carried in ({}, {"Authorization": "Bearer wrong", "Cookie": "session=x; sessionid=x"}):
        for (method, target), headers in requests.items():
            sent = TUS | origin | {"Content-Type": STREAM} | headers | carried
            reply = await client.withheld(method, target, sent)
            assert (reply.status, reply.continued) == (401, False), method
            assert reply["Access-Control-Allow-Origin"] == "*"
            assert "WWW-Authenticate" in reply
    await client.aclose()
    for method, target in (("HEAD", upload.url), ("DELETE", upload.url), ("GET", upload.url)):
        assert httpx.request(method, target, headers=TUS).status_code == 401
    assert httpx.get(f"{example.url}/my-files").status_code in (401, 403)
    for user, password in (("alice", "builder"), ("eve", "")):
        form = {"user": user, "password": password}
        assert httpx.post(f"{example.url}/sign-in", json=form).status_code == 401


def test_a_page_of_another_origin_may_ask(example: Example) -> None:
    """Without credentials, as browsers ask; and no page may send its user's cookies along."""
    reply = httpx.options(example.endpoint, headers=PREFLIGHT)
    assert reply.is_success
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert "Upload-Length" in reply.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in reply.headers


def test_what_only_begins_like_the_mount_is_the_applications(example: Example) -> None:
    url = example.endpoint.rstrip("/")
    assert "Tus-Resumable" in httpx.options(f"{url}/").headers
    assert "Tus-Resumable" not in httpx.options(f"{url}-more/").headers


def test_bytes_are_stored_while_they_come(example: Example) -> None:
    """They are on the disk before the body is over, and never all in memory."""
    user = example.sign_in("alice")
    created = httpx.post(example.endpoint, headers=TUS | user | {"Upload-Length": str(128 * MIB)})
    upload_id = created.headers["Location"].rpartition("/")[2]
    process = psutil.Process(example.pid)
    before = peak = process.memory_info().rss
    stored = 0

    def size() -> int:
        return sum(file.stat().st_size for file in example.data.rglob(f"incoming/**/{upload_id}*"))

    def body() -> Iterator[bytes]:
        nonlocal peak, stored
        piece = os.urandom(MIB)
        for sent in range(1, 129):
            yield piece
            peak = max(peak, process.memory_info().rss)
            if sent == 64:
                # The sockets' buffers and ours hold some MiB that were sent.
                wait_for(lambda: size() >= 32 * MIB)
                stored = size()

    headers = TUS | user | {"Content-Type": STREAM, "Upload-Offset": "0"}
    headers |= {"Content-Length": str(128 * MIB)}
    reply = httpx.patch(created.headers["Location"], headers=headers, content=body(), timeout=60)
    assert reply.status_code == 204
    assert 32 * MIB <= stored <= 64 * MIB
    assert peak - before < 48 * MIB


# ------------------------------------------------------------------- servers that are stopped


@pytest.mark.parametrize("name", ["fastapi", "starlette", "django", "litestar"])
def test_the_stores_are_closed_with_the_application(name: str, tmp_path: Path) -> None:
    """What was begun goes on with the next process, and what it ends is seen by the user."""
    with Example(name, tmp_path) as server:
        first = uploader(server, server.sign_in("alice"))
        first.upload(stop_at=3 * CHUNK)
        # SQLite's log is there for as long as somebody has the database open.
        assert (tmp_path / "tidegate.db-wal").exists()
        stop(server)
        assert not (tmp_path / "tidegate.db-wal").exists()
        server.start()
        user = server.sign_in("alice")
        second = uploader(server, user, url=first.url)
        assert second.offset == 3 * CHUNK
        second.upload()
        upload_id = first.url.removeprefix(server.endpoint)
        wait_for(lambda: upload_id in [file["id"] for file in server.my_files(user)])
        stop(server)


@pytest.mark.parametrize("name", ["fastapi", "starlette", "django", "litestar"])
def test_below_a_root_path_and_behind_a_proxy(name: str, tmp_path: Path) -> None:
    """The proxy cuts off /app; Location has it, and what the proxy tells of the client's URL."""
    with Example(name, tmp_path, "--root-path", "/app") as server:
        user = server.sign_in("alice")
        told = {"Host": "uploads.example", "X-Forwarded-Proto": "https"}
        for extra, origin in (({}, server.url), (told, "https://uploads.example")):
            headers = {**TUS, **user, **extra, "Upload-Length": str(len(CONTENT))}
            created = httpx.post(server.endpoint, headers=headers)
            assert created.status_code == 201
            location = created.headers["Location"]
            assert location.startswith(f"{origin}/app{server.mounted}")
            inside = location.replace(f"{origin}/app", server.url)
            uploader(server, user, url=inside).upload()
            assert httpx.get(inside, headers=user).content == CONTENT
        wait_for(lambda: len(server.my_files(user)) == 2)
