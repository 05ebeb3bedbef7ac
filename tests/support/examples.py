"""The applications of `examples/`, each served by uvicorn as its docstring says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parent.parent.parent
MOUNTED = {
    "fastapi": "/files/",
    "starlette": "/api/files/",
    "django": "/files/",
    "litestar": "/api/files/",
}
"""Where each example has its uploads."""
PASSWORDS = {"alice": "wonderland", "bob": "builder"}

_RUNNING = re.compile(r"http://127\.0\.0\.1:\d+(?= \(Press)")


class Example(ServerProcess):
    """One of the examples; its uploads are in `data`."""

    def __init__(self, name: str, data: Path, *flags: str) -> None:
        super().__init__(
            data,
            *flags,
            command=(sys.executable, "-m", "uvicorn", "--http", "h11", "--app-dir", str(ROOT)),
            announcement=_RUNNING,
            env={"UPLOADS": str(data)},
        )
        self.name = name
        self.mounted = MOUNTED[name]

    def argv(self) -> list[str]:
        """As in the docstring of the example, on its port."""
        return [*self.command, "--port", str(self.port), *self.flags, self.application]

    @property
    def application(self) -> str:
        """What uvicorn is told to serve."""
        return f"examples.{self.name}_app:app"

    @property
    def endpoint(self) -> str:
        """The creation URL."""
        return self.url + self.mounted

    def sign_in(self, user: str) -> dict[str, str]:
        """What the requests of a user then carry."""
        form = {"user": user, "password": PASSWORDS[user]}
        reply = httpx.post(f"{self.url}/sign-in", json=form)
        assert reply.is_success, reply.text
        if reply.content:
            return {"Authorization": f"Bearer {reply.json()['token']}"}
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in reply.cookies.items())}

    def my_files(self, user: Mapping[str, str]) -> list[dict[str, str]]:
        """The finished uploads of who carries `user`, by id."""
        reply = httpx.get(f"{self.url}/my-files", headers=dict(user))
        assert reply.status_code == 200, reply.text
        found: list[dict[str, str]] = reply.json()
        return found
