"""Uploads in Starlette, for those who have a session.

    uvicorn --http h11 examples.starlette_app:app

Sign in: POST {"user": "alice", "password": "…"} to /sign-in, which sets a cookie. Upload to
/api/files with it. GET /my-files lists what is whole.
"""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from tidegate.asgi import Tidegate
from tidegate.hooks import Denied, Principal, Upload, UploadRequest, read_metadata
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Delivery
from tidegate.protocol.model import EventType
from tidegate.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PASSWORDS = {"alice": "wonderland", "bob": "builder"}  # yours are hashed, in a database
FILES: dict[str, dict[str, str]] = {}


def fits(user: str, password: str) -> bool:
    return user in PASSWORDS and secrets.compare_digest(PASSWORDS[user].encode(), password.encode())


def authorize(request: UploadRequest, _upload: Upload | None) -> Principal:
    """The session is what SessionMiddleware found, around the mounted application, too."""
    user = request.scope["session"].get("user")
    if user is None:
        raise Denied(401, "sign in first", headers={"WWW-Authenticate": "Session"})
    return Principal(id=user)


async def on_upload(delivery: Delivery) -> None:
    upload = delivery.event.upload
    if delivery.event.type is EventType.COMPLETED and upload.principal:
        name = read_metadata(upload).get("filename", b"").decode("utf-8", "replace")
        FILES.setdefault(upload.principal, {})[upload.id] = name  # may come more than once


async def sign_in(request: Request) -> Response:
    form = await request.json()
    if not fits(form["user"], form["password"]):
        raise HTTPException(401, "wrong user or password")
    request.session["user"] = form["user"]
    return Response(status_code=204)


async def my_files(request: Request) -> Response:
    if "user" not in request.session:
        raise HTTPException(401, "sign in first")
    own = FILES.get(request.session["user"], {})
    return JSONResponse([{"id": upload_id, "name": name} for upload_id, name in own.items()])


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Whatever else your application opens goes here."""
    async with uploads:
        yield


folder = Path(os.environ.get("UPLOADS", "uploads"))
metadata = SQLiteMetadataStore(folder / "tidegate.db")
uploads = Tidegate(LocalStore(folder), metadata, authorize=authorize, on_event=[on_upload])
app = Starlette(
    routes=[
        Route("/sign-in", sign_in, methods=["POST"]),
        Route("/my-files", my_files),
        Mount("/api", routes=[Mount("/files", uploads)]),
    ],
    middleware=[
        Middleware(SessionMiddleware, secret_key=os.environ.get("SECRET") or os.urandom(32).hex())
    ],
    lifespan=lifespan,
)
