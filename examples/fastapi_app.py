"""Uploads in FastAPI, for those who have a bearer token.

    uvicorn --http h11 examples.fastapi_app:app

Sign in: POST {"user": "alice", "password": "…"} to /sign-in, which answers with a token. Upload to
/files with it. GET /my-files lists what is whole.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from pydantic import BaseModel

from tidegate.asgi import Tidegate
from tidegate.hooks import Denied, Principal, Upload, UploadRequest, read_metadata
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import DataStore, Delivery, MetadataStore
from tidegate.protocol.model import EventType
from tidegate.stores.local import LocalStore

PASSWORDS = {"alice": "wonderland", "bob": "builder"}  # yours are hashed, in a database
CHALLENGE = {"WWW-Authenticate": "Bearer"}


class SignIn(BaseModel):
    user: str
    password: str


def fits(user: str, password: str) -> bool:
    return user in PASSWORDS and secrets.compare_digest(PASSWORDS[user].encode(), password.encode())


def create_app(data: DataStore, metadata: MetadataStore) -> FastAPI:
    """The application on two stores, which a test has in memory."""
    tokens: dict[str, str] = {}
    files: dict[str, dict[str, str]] = {}

    def authorize(request: UploadRequest, _upload: Upload | None) -> Principal:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in tokens:
            raise Denied(401, "sign in first", headers=CHALLENGE)
        return Principal(id=tokens[token], max_size=2**30)

    async def on_upload(delivery: Delivery) -> None:
        # By its id, since an event may come more than once.
        upload = delivery.event.upload
        if delivery.event.type is EventType.COMPLETED and upload.principal:
            name = read_metadata(upload).get("filename", b"").decode("utf-8", "replace")
            files.setdefault(upload.principal, {})[upload.id] = name

    uploads = Tidegate(data, metadata, authorize=authorize, on_event=[on_upload])
    app = FastAPI(lifespan=uploads.lifespan)

    @app.post("/sign-in")
    async def sign_in(form: SignIn) -> dict[str, str]:
        if not fits(form.user, form.password):
            raise HTTPException(401, "wrong user or password")
        token = secrets.token_urlsafe()
        tokens[token] = form.user
        return {"token": token}

    @app.get("/my-files")
    async def my_files(
        sent: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())],
    ) -> list[dict[str, str]]:
        if sent.credentials not in tokens:
            raise HTTPException(401, "sign in first", CHALLENGE)
        own = files.get(tokens[sent.credentials], {})
        return [{"id": upload_id, "name": name} for upload_id, name in own.items()]

    app.mount("/files", uploads)
    return app


folder = Path(os.environ.get("UPLOADS", "uploads"))
app = create_app(LocalStore(folder), SQLiteMetadataStore(folder / "tidegate.db"))
