"""moto's S3 server in a thread of this process: what it holds can be looked at without asking it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3 import models
from moto.server import ThreadedMotoServer
from tests.support.s3_server import BUCKET, S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.stores.s3.store import S3Store


class MotoHere:
    """A server with one bucket, BUCKET."""

    def __init__(self, server: S3Server) -> None:
        self._server = server

    @property
    def _backend(self) -> Any:
        return get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]

    def store(self, **options: Any) -> S3Store:
        """A store in the whole bucket, not opened yet."""
        return self._server.store(**options)

    def empty(self) -> None:
        """Forget all that is in the bucket."""
        self._backend.reset()
        self._backend.create_bucket(BUCKET, "us-east-1")

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._backend.put_object(BUCKET, key, data)

    def put_parts(self, multipart: str, parts: Sequence[bytes]) -> list[str]:
        """Store the parts of a multipart upload, from 1 on; their ETags."""
        backend = self._backend
        return [
            backend.upload_part(BUCKET, multipart, number, part).etag
            for number, part in enumerate(parts, 1)
        ]

    def object(self, key: str) -> bytes:
        """What an object holds; nothing where there is none."""
        found = self._backend.buckets[BUCKET].keys.get(key)
        return b"" if found is None else bytes(found.value)

    def part(self, multipart: str, number: int) -> bytes:
        """What a part holds; nothing where there is none."""
        found = self._backend.buckets[BUCKET].multiparts.get(multipart)
        part = None if found is None else found.parts.get(number)
        return b"" if part is None else bytes(part.value)

    def left(self, *prefixes: str) -> list[str]:
        """The keys of objects, and of multipart uploads, that begin with one of some prefixes."""
        bucket = self._backend.buckets[BUCKET]
        multiparts = [multipart.key_name for multipart in list(bucket.multiparts.values())]
        return [key for key in [*bucket.keys, *multiparts] if key.startswith(prefixes)]


@contextmanager
def moto_here(*, least_part: int) -> Iterator[MotoHere]:
    """A server with parts of at least `least_part` bytes, until the context ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "S3_UPLOAD_PART_MIN_SIZE", least_part)
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            here = MotoHere(S3Server(f"http://{host}:{port}"))
            here.empty()
            yield here
        finally:
            here.empty()
            server.stop()
