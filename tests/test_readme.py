"""What the README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tidegate.config import Config

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_blocks_are_found() -> None:
    assert (len(blocks("sh")), len(blocks("toml")), len(blocks("python"))) == (2, 1, 2)


@pytest.mark.parametrize("command", blocks("sh"))
def test_the_commands_are_scripts_of_the_checkout(command: str) -> None:
    assert os.access(ROOT / command.split(maxsplit=1)[0], os.X_OK)


def test_the_settings_exist() -> None:
    names = {name.replace("-", "_") for name in tomllib.loads(blocks("toml")[0])}
    assert names <= set(Config.__dataclass_fields__)


def test_a_store_is_checked_as_shown() -> None:
    """The block on writing a store, in an interpreter of its own."""
    subprocess.run([sys.executable, "-c", blocks("python")[1]], check=True, timeout=60)


def test_an_application_is_mounted_as_shown(tmp_path: Path) -> None:
    """The block on mounting, and an upload to it."""
    code = blocks("python")[0] + USE
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)


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
