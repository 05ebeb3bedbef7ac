"""What the README shows is run as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tidegate.config import Config
from tidegate.events.payload import payload
from tidegate.ports import Delivery
from tidegate.protocol.model import Event, EventType, State, Upload, UploadId

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_blocks_are_found() -> None:
    counts = {name: len(blocks(name)) for name in ("sh", "toml", "python", "json")}
    assert counts == {"sh": 2, "toml": 3, "python": 4, "json": 1}


@pytest.mark.parametrize("command", blocks("sh"))
def test_the_commands_are_scripts_of_the_checkout(command: str) -> None:
    assert os.access(ROOT / command.split(maxsplit=1)[0], os.X_OK)


@pytest.mark.parametrize("settings", blocks("toml"))
def test_the_settings_exist(settings: str) -> None:
    names = {name.replace("-", "_") for name in tomllib.loads(settings)}
    assert names <= set(Config.__dataclass_fields__)


def test_a_store_is_checked_as_shown() -> None:
    """The block on writing a store, in an interpreter of its own."""
    subprocess.run([sys.executable, "-c", blocks("python")[3]], check=True, timeout=60)


def test_listeners_are_told_as_shown() -> None:
    """The block on events, and an upload: of one listener all, of the other its completion."""
    code = blocks("python")[2] + TELL
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    events = [line.split()[1] for line in said.stdout.splitlines()]
    assert sorted(events) == ["completed", "completed", "created"]


def test_an_event_looks_as_shown() -> None:
    shown = json.loads(blocks("json")[0])
    upload = Upload(
        id=UploadId("5pXw2nQ8Rr6mJ1yLkT0aVg"),
        state=State.COMPLETE,
        length=11,
        offset=11,
        metadata="filename Y2F0LmpwZw==",
        storage=shown["data"]["upload"]["storage"],
        created_at=1_772_366_398.0,
        active_at=1_772_366_400.0,
        ended_at=1_772_366_400.25,
    )
    event = Event(type=EventType.COMPLETED, at=1_772_366_400.25, upload=upload)
    assert json.loads(payload(Delivery(17, event, 0))) == shown


def test_an_application_is_mounted_as_shown(tmp_path: Path) -> None:
    """The block on mounting, and an upload to it."""
    code = blocks("python")[0] + USE
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)


TELL = """
import asyncio, httpx

async def use():
    transport = httpx.ASGITransport(uploads)
    async with uploads, httpx.AsyncClient(transport=transport) as client:
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
        headers |= {"Content-Type": "application/offset+octet-stream"}
        await client.post("http://host/", headers=headers, content=b"tidal")
        while (await uploads.engine._core.metadata.counts()).pending_events:
            await asyncio.sleep(0.01)

asyncio.run(use())
"""

USE = """
import asyncio, httpx

async def use():
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
        headers |= {"Content-Type": "application/offset+octet-stream"}
        created = await client.post("http://host/files/", headers=headers, content=b"tidal")
        assert created.status_code == 201, created.text
        assert created.headers["location"].startswith("http://host/files/")
        assert (await client.get(created.headers["location"])).content == b"tidal"

asyncio.run(use())
"""


def test_who_may_upload_is_decided_as_shown() -> None:
    """The block on authorisation and hooks, and uploads that each of them is asked about."""
    code = blocks("python")[1] + DECIDED
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


DECIDED = """
import asyncio, httpx

async def use():
    transport = httpx.ASGITransport(uploads)
    async with uploads, httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        async def post(session, body):
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "X-Session": session}
            headers |= {"Content-Type": "application/offset+octet-stream"}
            return (await client.post("/", headers=headers, content=body)).status_code

        assert await post("session-of-bob", b"%PDF-") == 401
        assert await post("session-of-alice", b"tidal") == 422
        assert await post("session-of-alice", b"%PDF-") == 201

asyncio.run(use())
"""
