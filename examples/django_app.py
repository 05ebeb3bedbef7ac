"""Uploads in Django, for its users: a project in one file.

    uvicorn --http h11 examples.django_app:app

Sign in: POST {"user": "alice", "password": "…"} to /sign-in, which sets a cookie. Upload to
/files with it. GET /my-files lists what is whole.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import django
from django.conf import settings
from django.core.asgi import get_asgi_application

folder = Path(os.environ.get("UPLOADS", "uploads"))
settings.configure(
    SECRET_KEY=os.environ.get("SECRET") or os.urandom(32).hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "django.db"}},
)
django.setup()

from django.contrib.auth import aauthenticate, alogin, get_user_model  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from tidegate.asgi import Tidegate  # noqa: E402
from tidegate.contrib.django import database, dispatch, get_user  # noqa: E402
from tidegate.hooks import Denied, Principal, Upload, UploadRequest, read_metadata  # noqa: E402
from tidegate.metadata.sqlite.store import SQLiteMetadataStore  # noqa: E402
from tidegate.ports import Delivery  # noqa: E402
from tidegate.protocol.model import EventType  # noqa: E402
from tidegate.stores.local import LocalStore  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class File(models.Model):  # type: ignore[misc]  # Django has no types
    upload = models.CharField(max_length=128, primary_key=True)
    owner = models.ForeignKey("auth.User", on_delete=models.CASCADE)
    name = models.TextField()

    class Meta:
        app_label = db_table = "files"

    def __str__(self) -> str:
        return str(self.name)


async def authorize(request: UploadRequest, _upload: Upload | None) -> Principal:
    user = await get_user(request)
    if not user.is_authenticated:
        raise Denied(401, "sign in first", headers={"WWW-Authenticate": "Session"})
    return Principal(id=str(user.pk))


@database()
def on_upload(delivery: Delivery) -> None:
    upload = delivery.event.upload
    if delivery.event.type is EventType.COMPLETED and upload.principal:
        name = read_metadata(upload).get("filename", b"").decode("utf-8", "replace")
        values = {"owner_id": upload.principal, "name": name}
        File.objects.update_or_create(values, upload=upload.id)  # may come more than once


async def sign_in(request: HttpRequest) -> HttpResponse:
    form = json.loads(request.body)
    user = await aauthenticate(request, username=form["user"], password=form["password"])
    if user is None:
        return HttpResponse("wrong user or password", status=401)
    await alogin(request, user)
    return HttpResponse(status=204)


async def my_files(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    if not user.is_authenticated:
        return HttpResponse("sign in first", status=401)
    own = File.objects.filter(owner=user)
    return JsonResponse([{"id": file.upload, "name": file.name} async for file in own], safe=False)


@database()
def prepare() -> None:
    """A real project has migrations and users of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    call_command("migrate", verbosity=0)
    if "files" not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(File)
    for name, password in (("alice", "wonderland"), ("bob", "builder")):
        if not get_user_model().objects.filter(username=name).exists():
            get_user_model().objects.create_user(name, password=password)


@asynccontextmanager
async def lifespan(_app: object) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(prepare)
    async with uploads:
        yield


urlpatterns = [path("sign-in", sign_in), path("my-files", my_files)]
metadata = SQLiteMetadataStore(folder / "tidegate.db")
uploads = Tidegate(LocalStore(folder), metadata, authorize=authorize, on_event=[on_upload])
app = dispatch(get_asgi_application(), "/files", uploads, lifespan=lifespan)
