"""The S3 service, as far as the store needs it: what fails for the time being is tried again, and
what fails for good is told in the port's words.

Every call may be made again without harm, and is: whoever asks for a key or a part number to be
written never asks for other bytes under it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import anyio
import botocore.auth
import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from anyio import to_thread
from botocore import handlers
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnectionError

from tidegate.ports import BytesMissingError, DataError
from tidegate.stores.s3.options import Checksums, S3Options

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

log = logging.getLogger("tidegate.s3")

SEND_CHUNK: Final = 256 * 1024
"""Bytes given to a socket at a time: the loop is not held up for longer than some 50 µs."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before another try: at random up to these, so that many do not come at the same time."""
SLOWEST: Final = 128 * 1024
"""Bytes per second that a request with a body must come to, or it is given up and made again."""
CONNECT_TIMEOUT: Final = 10.0
PROBE_PATIENCE: Final = 1.0
"""Seconds: for one connection that had just been closed, and for who is told to slow down once."""
CONNECTIONS: Final = 256
"""At a time; more requests wait. The memory for parts is what bounds them otherwise."""
DELETE_AT_ONCE: Final = 1000
"""Keys that one request deletes at most, by S3's documentation."""

_MISSING: Final = frozenset(
    {"NoSuchKey", "NoSuchUpload", "404", "InvalidRange", "416", "InvalidPart"}
)
_AGAIN: Final = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)


class Missing(BytesMissingError):
    """There is no such object, part, or multipart upload."""


class Content:
    """Bytes to be sent, which are never copied into one piece. As the SDK wants it: a file, nearly.

    `digest` is what the checksum is computed with, in the caller's thread.
    """

    def __init__(self, data: memoryview, checksums: Checksums) -> None:
        self._data = data
        self.headers: dict[str, Any] = {}
        self.signed = "UNSIGNED-PAYLOAD"
        if checksums is Checksums.SHA256:
            self.signed = hashlib.sha256(data).hexdigest()
        elif checksums is Checksums.MD5:
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            self.headers["ContentMD5"] = base64.b64encode(digest).decode()

    def __len__(self) -> int:
        return self._data.nbytes

    def read(self, _size: int = -1) -> bytes:
        """Never called: it is how the SDK knows a file."""
        raise NotImplementedError

    def seek(self, *_args: int) -> int:
        """Every iteration starts at the beginning."""
        return 0

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self), SEND_CHUNK):
            yield self._data[start : start + SEND_CHUNK]


class _Signer(botocore.auth.S3SigV4Auth):  # type: ignore[misc]  # the SDK has no types
    """Signs a Content with the digest that was computed in a thread, not again on the event loop."""

    NAME = "tidegate-s3v4"

    def payload(self, request: Any) -> str:
        """The digest of a body, or that it has none."""
        body = request.data
        signed: str = body.signed if isinstance(body, Content) else super().payload(request)
        return signed


botocore.auth.AUTH_TYPE_MAPS[_Signer.NAME] = _Signer


class Client:
    """One bucket, and the requests that the store makes. All but `open` and `close` raise DataError;
    what is said to be not there is Missing.
    """

    def __init__(self, bucket: str, options: S3Options) -> None:
        self.bucket = bucket
        self.options = options
        self._context: AbstractAsyncContextManager[Any] | None = None
        self._sdk: Any = None
        self.requests = 0
        """How many were made."""

    # ------------------------------------------------------------------------- life

    async def open(self) -> None:
        """Make the SDK's client, and see that the bucket is there. Raises DataError."""
        session = AioSession()
        try:
            session.register_component("data_loader", await to_thread.run_sync(_loader))
            # Its own files are read where that may block, too.
            await to_thread.run_sync(lambda: session.full_config)
            self._context = session.create_client("s3", **self._settings())
            self._sdk = await self._context.__aenter__()
        except (BotoCoreError, ValueError) as error:
            raise DataError(f"the S3 client can't be set up: {error}") from error
        events = self._sdk.meta.events
        for operation in ("UploadPart", "PutObject"):
            events.register_first(f"choose-signer.s3.{operation}", _choose_signer)
        # A round trip more per part, and services that never answer it.
        events.unregister("before-call.s3", handlers.add_expect_header)
        try:
            await self.call("head_bucket")
        except Missing as error:
            await self.close()
            raise DataError(f"there is no such bucket: {self.bucket} at {self.endpoint}") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close its connections. May be called twice."""
        context, self._context = self._context, None
        if context is not None:
            with anyio.CancelScope(shield=True):
                await context.__aexit__(None, None, None)

    @property
    def endpoint(self) -> str:
        """The service's address, for people."""
        return str(self._sdk.meta.endpoint_url)

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "endpoint_url": options.endpoint,
            "region_name": options.region,
            "config": AioConfig(
                s3={
                    "addressing_style": "path" if options.path_style else "auto",
                    "payload_signing_enabled": True,
                },
                signature_version="s3v4",
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=options.timeout,
                max_pool_connections=CONNECTIONS,
                # Ours are bounded by time, not by number, and know which ones are the same.
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        }

    # --------------------------------------------------------------------- requests

    async def call(
        self,
        operation: str,
        *,
        size: int = 0,
        done: Callable[[], Awaitable[bool]] | None = None,
        patience: float | None = None,
        **params: Any,
    ) -> Any:
        """Make a request until it succeeds, fails for good, or `patience` has run out.

        `size`: bytes that it takes along. `done` is asked whether one that seems to have failed had
        its effect; then its answer is None. `patience`: the options' if not given. Raises DataError.
        """
        function = getattr(self._sdk, operation)
        deadline = anyio.current_time() + (self.options.patience if patience is None else patience)
        pause = FIRST_PAUSE
        while True:
            try:
                self.requests += 1
                with anyio.fail_after(self.options.timeout + size / SLOWEST):
                    return await function(Bucket=self.bucket, **params)
            except _ERRORS as error:
                failure, again = _translated(self.bucket, operation, error)
            if done is not None and await done():
                return None
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - no secret
            if not again or anyio.current_time() + wait > deadline:
                raise failure
            log.debug("%s; again in %.1f s", failure, wait)
            await anyio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def probe(self) -> None:
        """See whether the bucket answers, without much patience."""
        await self.call("head_bucket", patience=PROBE_PATIENCE)

    async def start_multipart(self, key: str, **fields: Any) -> str:
        """Begin a multipart upload; its id. One that nobody heard of may be left over."""
        params: dict[str, Any] = self.kept_as() | fields
        answer = await self.call("create_multipart_upload", Key=key, **params)
        return str(answer["UploadId"])

    def kept_as(self) -> dict[str, Any]:
        """How finished objects are kept, as parameters of what makes one."""
        options = self.options
        fields: dict[str, Any] = {}
        if options.storage_class is not None:
            fields["StorageClass"] = options.storage_class
        return fields | self._encrypted()

    def _encrypted(self) -> dict[str, Any]:
        if self.options.encryption is None:
            return {}
        if not self.options.encryption.startswith("aws:kms"):
            return {"ServerSideEncryption": self.options.encryption}
        _, _, key = self.options.encryption.removeprefix("aws:").partition(":")
        return {"ServerSideEncryption": "aws:kms"} | ({"SSEKMSKeyId": key} if key else {})

    async def put_part(self, key: str, multipart: str, number: int, content: Content) -> str:
        """Store a part; its ETag."""
        answer = await self.call(
            "upload_part",
            size=len(content),
            Key=key,
            UploadId=multipart,
            PartNumber=number,
            Body=content,
            **content.headers,
        )
        return str(answer["ETag"])

    async def copy_part(
        self, key: str, multipart: str, number: int, source: str, etag: str, start: int, stop: int
    ) -> str:
        """Make bytes [start, stop) of another object a part; its ETag."""
        answer = await self.call(
            "upload_part_copy",
            size=stop - start,
            Key=key,
            UploadId=multipart,
            PartNumber=number,
            CopySource={"Bucket": self.bucket, "Key": source},
            CopySourceIfMatch=etag,
            CopySourceRange=f"bytes={start}-{stop - 1}",
        )
        return str(answer["CopyPartResult"]["ETag"])

    async def complete(
        self,
        key: str,
        multipart: str,
        parts: Sequence[tuple[int, str]],
        done: Callable[[], Awaitable[bool]],
    ) -> None:
        """Put the parts together, if `done` does not find that they are. Missing: the upload is, or
        one of them.
        """
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        await self.call(
            "complete_multipart_upload",
            done=done,
            Key=key,
            UploadId=multipart,
            MultipartUpload={"Parts": listed},
        )

    async def abort(self, key: str, multipart: str) -> None:
        """Delete a multipart upload with its parts; fine when there is none."""
        try:
            await self.call("abort_multipart_upload", Key=key, UploadId=multipart)
        except Missing:
            pass

    async def put(self, key: str, content: Content, **fields: Any) -> str:
        """Store an object; its ETag."""
        answer = await self.call(
            "put_object",
            size=len(content),
            Key=key,
            Body=content,
            **(content.headers | self._encrypted() | fields),
        )
        return str(answer["ETag"])

    async def head(self, key: str) -> dict[str, Any] | None:
        """What is known of an object, or None."""
        try:
            found: dict[str, Any] = await self.call("head_object", Key=key)
        except Missing:
            return None
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; fine when there are none."""
        for key in keys[:1] if len(keys) == 1 else ():
            try:
                await self.call("delete_object", Key=key)
            except Missing:
                pass
            return
        for first in range(0, len(keys), DELETE_AT_ONCE):
            listed = [{"Key": key} for key in keys[first : first + DELETE_AT_ONCE]]
            answer = await self.call("delete_objects", Delete={"Objects": listed, "Quiet": True})
            for error in answer.get("Errors", ()):
                if error.get("Code") not in _MISSING:
                    raise DataError(f"{error.get('Key')} can't be deleted: {error.get('Message')}")

    async def read(self, key: str, start: int, stop: int, chunk: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) of an object in chunks; Missing, before the first, when it is shorter.

        A connection that breaks is made again, to the same object.
        """
        deadline = anyio.current_time() + self.options.patience
        fields: dict[str, Any] = {}
        while start < stop:
            answer = await self.call(
                "get_object", Key=key, Range=f"bytes={start}-{stop - 1}", **fields
            )
            async with answer["Body"] as body:
                if answer["ContentLength"] != stop - start:
                    raise Missing(f"{key} ends at {start + answer['ContentLength']}, not {stop}")
                fields = {"IfMatch": answer["ETag"]}
                try:
                    while data := await self._next(body, min(chunk, stop - start)):
                        start += len(data)
                        deadline = anyio.current_time() + self.options.patience
                        yield data
                except _ERRORS as error:
                    failure, _ = _translated(self.bucket, "get_object", error)
                    if anyio.current_time() > deadline:
                        raise failure from error
                    log.debug("%s; again from %d", failure, start)
            if start < stop:
                await anyio.sleep(FIRST_PAUSE)

    async def _next(self, body: Any, size: int) -> bytes:
        with anyio.fail_after(self.options.timeout):
            data: bytes = await body.read(size)
        return data

    async def objects(self, prefix: str) -> AsyncIterator[dict[str, Any]]:
        """All objects whose keys begin with something."""
        async for page in self._pages("list_objects_v2", Prefix=prefix):
            for found in page.get("Contents", ()):
                yield found

    async def multiparts(self, prefix: str) -> AsyncIterator[dict[str, Any]]:
        """All multipart uploads of such keys."""
        async for page in self._pages("list_multipart_uploads", Prefix=prefix):
            for found in page.get("Uploads", ()):
                yield found

    async def size_of_parts(self, key: str, multipart: str) -> int | None:
        """What the parts of a multipart upload take up, in bytes; None: there is no such upload."""
        size = 0
        try:
            async for page in self._pages("list_parts", Key=key, UploadId=multipart):
                size += sum(part["Size"] for part in page.get("Parts", ()))
        except Missing:
            return None
        return size

    async def has_multipart(self, key: str, multipart: str) -> bool:
        """Whether there is such a multipart upload."""
        try:
            await self.call("list_parts", Key=key, UploadId=multipart, MaxParts=1)
        except Missing:
            return False
        return True

    async def _pages(self, operation: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        """All answers of a listing, however many there are."""
        onwards = _ONWARDS[operation]
        at: dict[str, Any] = {}
        while True:
            page = await self.call(operation, **params, **at)
            yield page
            if not page.get("IsTruncated"):
                return
            at = {name: page[told] for name, told in onwards.items() if page.get(told)}

    async def link(self, key: str, seconds: float, **fields: str) -> str:
        """An address at which anybody can read an object for some time."""
        params = {"Bucket": self.bucket, "Key": key, **fields}
        try:
            signed = await self._sdk.generate_presigned_url(
                "get_object", Params=params, ExpiresIn=int(seconds)
            )
        except _ERRORS as error:
            raise _translated(self.bucket, "a link", error)[0] from error
        return str(signed)


_ONWARDS: Final = {
    "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
    "list_multipart_uploads": {
        "KeyMarker": "NextKeyMarker",
        "UploadIdMarker": "NextUploadIdMarker",
    },
    "list_parts": {"PartNumberMarker": "NextPartNumberMarker"},
}
"""Where a listing goes on, by what its last page said."""

_ERRORS: Final = (BotoCoreError, ClientError, aiohttp.ClientError, OSError)
"""TimeoutError, which anyio and asyncio raise, is an OSError."""


@cache
def _loader() -> Any:
    """What gives the SDK its models, all of them read: that takes files, and a tenth of a second."""
    twin = botocore.session.Session()
    twin.create_client(
        "s3",
        endpoint_url="http://127.0.0.1",
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106 - never used
    )
    return twin.get_component("data_loader")


def _choose_signer(**_: Any) -> str:
    return _Signer.NAME


def _translated(bucket: str, operation: str, error: Exception) -> tuple[DataError, bool]:
    """An error in the port's words, and whether the same request may succeed soon."""
    what = f"S3 bucket {bucket}, {operation}"
    if isinstance(error, ClientError):
        told = error.response.get("Error", {})
        code = str(told.get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = f"{what}: {code or status} {told.get('Message', '')}".rstrip()
        if code in _AGAIN or (status >= 500 and status != 501) or status == 429:
            return DataError(message), True
        if code in _MISSING or (status == 404 and code != "NoSuchBucket"):
            return Missing(message), False
        if code == "NoSuchBucket":
            return DataError(f"{what}: there is no such bucket"), False
        if status in {401, 403}:
            return DataError(
                f"{what}: not allowed ({code}): see what the credentials may do"
            ), False
        return DataError(message), False
    # Of what the SDK itself finds wrong, only what concerns a connection can pass. (One that was
    # not made is no HTTPClientError.)
    again = isinstance(error, (NoConnectionError, HTTPClientError, aiohttp.ClientError, OSError))
    reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    failure = DataError(f"{what}: {reason or type(error).__name__}")
    failure.__cause__ = error
    return failure, again
