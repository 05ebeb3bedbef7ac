"""Who may come in, over every way in and every pair of stores: refused before the body, in the
application's own words, and told to pages of other origins.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.exchange import STREAM, TUS, Client, Reply, path_of
from tests.support.services import service
from tests.support.serving import CLUSTER, PAIRS, S3_PAIR

from tidegate.auth.forward import ForwardAuth
from tidegate.auth.jwt import Claims
from tidegate.auth.jwt import Tokens as Jwts
from tidegate.auth.keys import FetchedKeys
from tidegate.auth.token import Tokens
from tidegate.engine.core import Settings
from tidegate.hooks import Action, Changes, Denied, Hooks, Principal
from tidegate.ports import Durability
from tidegate.transports.body import AsgiBody
from tidegate.transports.native.body import NativeBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.exchange import Headers
    from tests.support.services import Service

    from tidegate.hooks import Bytes, UploadRequest
    from tidegate.protocol.model import Upload

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio

over_all = pytest.mark.parametrize(
    "combination",
    [
        *((way, pair) for way in ("asgi", "native") for pair in (*PAIRS, CLUSTER, S3_PAIR)),
        *((way, "local+sqlite") for way in ("h11", "httptools")),
    ],
    ids="-".join,
)
"""Over all pairs of stores by both transports, where other tests take one for most pairs."""

ALICE, BOB = "token-of-alice-0123456789", "token-of-bob-0123456789"
TOKENS = Tokens([f"alice {ALICE}", f"bob {BOB}"])
PAGE = "https://page.test"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class As:
    """A client that says who it is."""

    def __init__(self, client: Client, token: str) -> None:
        self.client = client
        self.headers = bearer(token)

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)
        return lambda *args, **headers: call(*args, **self.headers, **headers)


class Reading:
    """How often a body was asked for, and what was given of it."""

    def __init__(self) -> None:
        self.bodies = 0


@pytest.fixture(autouse=True)
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    count = Reading()
    for body in (AsgiBody, NativeBody):

        def copy_to(self: Any, *args: Any, _copy: Any = body.copy_to) -> Any:
            count.bodies += 1
            return _copy(self, *args)

        monkeypatch.setattr(body, "copy_to", copy_to)
    return count


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """A line about every request, which says how much was read."""
    logger = logging.getLogger("tidegate.access")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


def bytes_in(logged: list[logging.LogRecord]) -> int:
    return sum(getattr(r, "tidegate")["bytes_in"] for r in logged if r.name == "tidegate.access")  # noqa: B009


def every_request(path: str) -> list[tuple[str, str, dict[str, str]]]:
    """Each method on an upload, and a creation; those that can have a body with one."""
    sent = TUS | {"Content-Type": STREAM}
    return [
        ("POST", "/files/", sent | {"Upload-Length": "100"}),
        ("PATCH", path, sent | {"Upload-Offset": "0"}),
        ("POST", path, sent | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}),
        ("HEAD", path, TUS),
        ("DELETE", path, TUS),
        ("GET", path, {}),
    ]


async def never_read(
    client: Client,
    reading: Reading,
    logged: list[logging.LogRecord],
    token: str,
    path: str,
    *,
    creating: bool = True,
) -> list[Reply]:
    """The answers to every request; none of which had a byte of its body read."""
    replies = []
    before = reading.bodies, bytes_in(logged)
    headers = (bearer(token) if token else {}) | {"Origin": PAGE}
    for method, at, sent in every_request(path)[0 if creating else 1 :]:
        has_body = method in ("POST", "PATCH")
        for length in (100, None) if has_body else (0,):
            if has_body:
                # The client waits to be told to go on, and is not.
                replies.append(await client.withheld(method, at, sent | headers, length=length))
                assert not replies[-1].continued
            # It does not wait.
            body = b"x" * 100 if has_body else None
            framing = {"Transfer-Encoding": "chunked"} if length is None else {}
            replies.append(await client.request(method, at, sent | headers | framing, body))
    assert (reading.bodies, bytes_in(logged)) == before
    return replies


# --------------------------------------------------------------------------------- static tokens


@over_all
@pytest.mark.parametrize("token", ["", "unknown-0123456789abcdef", "token-of-alice-012345678"])
async def test_nothing_is_read_from_who_may_not_come_in(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord], token: str
) -> None:
    client = await serve(authorize=TOKENS)
    alice = As(client, ALICE)
    path = await alice.create(100)
    # Also where there is nothing, or can be nothing: that is not for everyone to know.
    for at in (path, "/files/none", "/files/a/b", "/files/%ff"):
        for reply in await never_read(client, reading, logged, token, at):
            assert reply.status == 401
            assert reply["WWW-Authenticate"].startswith("Bearer")
            assert reply["Access-Control-Allow-Origin"] == "*"
            assert reply["Tus-Resumable"] == "1.0.0"
            assert "Upload-Offset" not in reply
            assert not token or token not in str(reply)
    assert (await alice.patch(path, 0, b"x" * 100)).status == 204
    assert reading.bodies == 1
    said = [f"{record.getMessage()} {vars(record)}" for record in logged]
    assert not [line for line in said if ALICE in line or (token and token in line)]


@over_all
async def test_nothing_is_read_from_who_is_not_its_owner(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord]
) -> None:
    client = await serve(authorize=TOKENS)
    path = await As(client, ALICE).create(100)
    for reply in await never_read(client, reading, logged, BOB, path, creating=False):
        assert reply.status == 404
        assert reply["Access-Control-Allow-Origin"] == "*"


async def test_what_comes_before_and_after_who_it_is(serve: Serve) -> None:
    """ "method -> Tus-Resumable -> authentication -> exists and is theirs -> the rest"."""
    client = await serve(authorize=TOKENS)
    path = await As(client, ALICE).create(5)
    assert (await client.request("PUT", path)).status == 405
    assert (await client.request("PATCH", path)).status == 412
    wrong = TUS | {"Content-Type": "text/plain"}
    assert (await client.request("PATCH", path, wrong)).status == 401
    assert (await client.request("PATCH", path, wrong | bearer(BOB))).status == 404
    assert (await client.request("PATCH", path, wrong | bearer(ALICE))).status == 415
    assert (await client.request("GET", "/elsewhere")).status == 404


async def test_a_preflight_carries_no_credentials(serve: Serve) -> None:
    client = await serve(authorize=TOKENS)
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "PATCH"}
    for path in (client.base, "/files/any"):
        reply = await client.request("OPTIONS", path, headers)
        assert reply.status == 204
        assert "authorization" in reply["Access-Control-Allow-Headers"].lower()


async def test_an_upload_belongs_to_who_made_it(serve: Serve) -> None:
    client = await serve(authorize=TOKENS)
    alice, bob = As(client, ALICE), As(client, BOB)
    path = await alice.whole(b"hello")
    part = await alice.whole(b"hello", Upload_Concat="partial")
    for reply in (
        await bob.head(path),
        await bob.patch(path, 5, b""),
        await client.tus("DELETE", path, **bearer(BOB)),
        await client.request("GET", path, bearer(BOB)),
        await bob.post(Upload_Concat=f"final;{part}"),
        await bob.post(
            Upload_Concat=f"final;{await bob.whole(b'x', Upload_Concat='partial')} {part}"
        ),
    ):
        assert reply.status == 404
        assert "none" not in reply.text
    # A foreign one and one that is not there: the same words.
    none = await bob.post(Upload_Concat="final;/files/none")
    foreign = await bob.post(Upload_Concat=f"final;{part}")
    assert (none.status, none.body) == (foreign.status, foreign.body)
    reply = await client.request("GET", path, bearer(ALICE))
    assert (reply.status, reply.body) == (200, b"hello")
    final = await alice.post(Upload_Concat=f"final;{part} {part}")
    assert final.status == 201
    assert (await client.request("GET", path_of(final), bearer(ALICE))).body == b"hellohello"
    assert (await client.tus("DELETE", path, **bearer(ALICE))).status == 204
    assert (await alice.head(path)).status == 410
    assert (await bob.head(path)).status == 404


async def test_a_writer_at_work_is_not_disturbed(serve: Serve) -> None:
    client = await serve(authorize=TOKENS)
    path = await As(client, ALICE).create(10)
    writing = await client.start_patch(path, 0, 10, Expect="100-continue", **bearer(ALICE))
    await writing.asked_for()
    await writing.send(b"hello")
    for headers in ({}, bearer(BOB)):
        for method in ("HEAD", "DELETE"):
            reply = await client.request(method, path, TUS | headers)
            assert reply.status == (404 if headers else 401)
        reply = await client.patch(path, 5, b"world", **headers)
        assert reply.status == (404 if headers else 401)
    await writing.send(b"world")
    await writing.end()
    assert (await writing.reply()).status == 204
    assert (await client.request("GET", path, bearer(ALICE))).body == b"helloworld"


async def test_a_principals_largest_upload(serve: Serve) -> None:
    def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        return Principal(id="alice", max_size=5)

    client = await serve(authorize=authorize)
    assert (await client.post(Upload_Length="6")).status == 413
    path = await client.create(Upload_Defer_Length="1")
    reply = await client.withheld(
        "PATCH", path, TUS | {"Content-Type": STREAM, "Upload-Offset": "0"}, length=6
    )
    assert (reply.status, reply.continued) == (413, False)
    assert (await client.patch(path, 0, b"hello")).status == 204
    assert (await client.patch(path, 5, b"!", Transfer_Encoding="chunked")).status == 413
    assert (await client.patch(path, 5, b"", Upload_Length="5")).status == 204


# --------------------------------------------------------------------------- in one's own words


async def test_a_refusal_in_the_applications_own_words(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord]
) -> None:
    body = json.dumps({"plan": "free"})

    async def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        raise Denied(402, headers={"Content-Type": "application/json", "X-Plan": "free"}, body=body)

    client = await serve(authorize=authorize)
    for reply in await never_read(client, reading, logged, "", "/files/a"):
        assert reply.status == 402
        assert reply["Content-Type"] == "application/json"
        assert reply["X-Plan"] == "free"
        assert reply["Access-Control-Allow-Origin"] == "*"
        assert "Upload-Offset" in reply["Access-Control-Expose-Headers"]
        assert reply["Content-Length"] == str(len(body))
        assert reply.body in (body.encode(), b"")


async def test_an_authoriser_that_breaks_lets_nobody_in(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord]
) -> None:
    async def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        raise LookupError("in the application")

    client = await serve(authorize=authorize)
    for reply in await never_read(client, reading, logged, ALICE, "/files/a"):
        assert reply.status == 500
        assert "application" not in reply.text
    assert any("in the application" in (record.exc_text or "") for record in logged)


async def test_what_is_seen_of_a_request(serve: Serve, combination: tuple[str, str]) -> None:
    seen: list[UploadRequest] = []

    def authorize(request: UploadRequest, _upload: Upload | None) -> Principal:
        seen.append(request)
        return Principal(id="alice")

    client = await serve(authorize=authorize)
    sent: Headers = [*TUS.items(), ("Host", "tus.test"), ("X-A", "1"), ("x-a", "2")]
    await client.request("HEAD", "/files/a%2Fb?c=d%26", sent)
    await client.request(
        "POST", "/files/x", [*sent, ("X-HTTP-Method-Override", "PATCH"), ("Upload-Offset", "0")]
    )
    first, second = seen
    assert first.url == "http://tus.test/files/a%2Fb?c=d%26"
    assert (first.path, first.method, first.action) == ("/files/a%2Fb", "HEAD", Action.INSPECT)
    assert (first.client, first.headers["X-A"]) == ("127.0.0.1", "1, 2")
    assert (second.method, second.action) == ("PATCH", Action.APPEND)
    found = {} if combination[0] == "native" else {"method": "POST"}
    assert {key: second.scope[key] for key in second.scope if key == "method"} == found


# --------------------------------------------------------------------------------- others' words

KEY, FOREIGN = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def signed(key: Any = KEY, **claims: Any) -> str:
    found = {"sub": "alice", "aud": "tus", "exp": int(time.time()) + 3600} | claims
    return jwt.encode(found, key, "ES256", headers={"kid": "one"})


@asynccontextmanager
async def issuer() -> AsyncIterator[Service]:
    async with service() as endpoint:
        key = jwt.get_algorithm_by_name("ES256").to_jwk(KEY.public_key(), as_dict=True)
        endpoint.body = json.dumps({"keys": [key | {"kid": "one"}]}).encode()
        yield endpoint


async def test_jwts(serve: Serve, reading: Reading, logged: list[logging.LogRecord]) -> None:
    async with issuer() as endpoint:
        keys = FetchedKeys(endpoint.url)
        client = await serve(authorize=Jwts(keys, Claims(audience=("tus",), max_size="max")))
        alice = As(client, signed())
        path = await alice.whole(b"hello")
        assert (await As(client, signed(max=4)).post(Upload_Length="5")).status == 413
        assert (await As(client, signed(sub="bob")).head(path)).status == 404
        for token in (signed(exp=1), signed(FOREIGN), signed(aud="them")):
            for reply in await never_read(client, reading, logged, token, path):
                assert reply.status == 401
                assert 'error="invalid_token"' in reply["WWW-Authenticate"]
        assert len(endpoint.asked) == 1
    assert not [record for record in logged if "eyJ" in f"{record.getMessage()} {vars(record)}"]


async def test_an_issuer_that_is_down(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord]
) -> None:
    async with issuer() as endpoint:
        endpoint.status = 500
        client = await serve(authorize=Jwts(FetchedKeys(endpoint.url)))
        for reply in await never_read(client, reading, logged, signed(), "/files/a"):
            assert (reply.status, reply["Retry-After"]) == (503, "5")
            assert reply["Access-Control-Allow-Origin"] == "*"


async def test_a_service_that_is_asked(
    serve: Serve, reading: Reading, logged: list[logging.LogRecord]
) -> None:
    async with service() as asked:
        asked.headers = [("Remote-User", "alice")]
        client = await serve(authorize=ForwardAuth(asked.url))
        path = path_of(await client.post(b"hello", Upload_Length="5", Cookie="session=1"))
        assert (await client.request("GET", path)).body == b"hello"
        told = asked.asked[0][2]
        assert (told["x-forwarded-method"], told["cookie"]) == ("POST", "session=1")
        assert told["x-forwarded-uri"] == "/files/"
        assert asked.bodies == [0, 0]
        asked.headers = [("Remote-User", "bob")]
        assert (await client.request("GET", path)).status == 404
        asked.status, asked.headers, asked.body = 403, [("Content-Type", "text/html")], b"<p>no"
        for reply in await never_read(client, reading, logged, "", path):
            assert reply.status == 403
            assert reply["Content-Type"] == "text/html"
            assert reply.body in (b"<p>no", b"")
            assert reply["Access-Control-Allow-Origin"] == "*"


async def test_a_service_that_hangs(serve: Serve, reading: Reading) -> None:
    async with service() as asked:
        asked.go = anyio.Event()
        settings = Settings(authorize_within=0.05, durability=Durability.NONE)
        client = await serve(authorize=ForwardAuth(asked.url), settings=settings)
        for method, path, sent in every_request("/files/a"):
            if method in ("POST", "PATCH"):
                reply = await client.withheld(method, path, sent)
                assert not reply.continued
            else:
                reply = await client.request(method, path, sent)
            assert (reply.status, reply["Retry-After"]) == (503, "5")
    assert not reading.bodies


# ----------------------------------------------------------------------------------------- hooks


async def test_a_creation_that_a_hook_shapes(serve: Serve) -> None:
    async def before_create(request: UploadRequest, upload: Upload) -> Changes:
        assert request.principal is not None
        if upload.length == 13:
            raise Denied(422, "not thirteen", headers={"X-Why": "luck"})
        return Changes(
            id="chosen", metadata={"filename": b"a b.txt"}, name="alice/a b.txt", max_size=10
        )

    client = await serve(authorize=TOKENS, hooks=Hooks(before_create=before_create))
    alice = As(client, ALICE)
    reply = await client.withheld(
        "POST",
        client.base,
        TUS | bearer(ALICE) | {"Content-Type": STREAM, "Upload-Length": "13", "Origin": PAGE},
        length=13,
    )
    assert (reply.status, reply.continued, reply["X-Why"]) == (422, False, "luck")
    assert reply["Access-Control-Allow-Origin"] == "*"
    assert (await alice.post(Upload_Length="11")).status == 413
    assert await alice.whole(b"hello", Upload_Metadata="filename eA==") == "/files/chosen"
    assert (await alice.head("/files/chosen"))["Upload-Metadata"] == "filename YSBiLnR4dA=="
    assert (await alice.post(Upload_Length="5")).status == 409
    reply = await client.request("GET", "/files/chosen", bearer(ALICE))
    assert (reply.body, 'filename="a b.txt"' in reply["Content-Disposition"]) == (b"hello", True)


async def test_a_completion_that_a_hook_refuses(serve: Serve) -> None:
    async def before_complete(_upload: Upload, content: Bytes, _request: object) -> None:
        if not (await content.first(4)).startswith(b"\x89PNG"):
            raise Denied(422, headers={"Content-Type": "application/json"}, body='{"png": false}')

    client = await serve(hooks=Hooks(before_complete=before_complete))
    picture = await client.whole(b"\x89PNG...")
    assert await client.content(picture) == b"\x89PNG..."
    path = await client.create(5)
    assert (await client.patch(path, 0, b"he")).status == 204
    reply = await client.patch(path, 2, b"llo", Origin=PAGE)
    assert (reply.status, reply.body) == (422, b'{"png": false}')
    assert reply["Access-Control-Allow-Origin"] == "*"
    for gone in (
        await client.head(path),
        await client.patch(path, 5, b""),
        await client.request("GET", path),
        await client.delete(path),
    ):
        assert gone.status == 410
    assert (await client.post(b"hello", Upload_Length="5")).status == 422
    part = await client.whole(b"hello", Upload_Concat="partial")
    assert (await client.post(Upload_Concat=f"final;{part}")).status == 422


async def test_a_completion_that_is_put_off(serve: Serve, reading: Reading) -> None:
    away = True

    async def before_complete(_upload: Upload, content: Bytes, _request: object) -> None:
        await content.first(1)
        if away:
            raise ConnectionError("the scanner is away")

    client = await serve(hooks=Hooks(before_complete=before_complete))
    path = await client.create(5)
    reply = await client.patch(path, 0, b"hello")
    assert (reply.status, reply["Retry-After"]) == (503, "5")
    assert (await client.head(path)).status == 503
    assert (await client.request("GET", path)).status == 403
    away = False
    assert await client.offset(path) == 5
    assert await client.content(path) == b"hello"
    assert reading.bodies == 1


async def test_a_termination_that_a_hook_refuses(serve: Serve) -> None:
    async def before_terminate(_request: UploadRequest, upload: Upload) -> None:
        if upload.complete:
            raise Denied(409, "it is in use")

    client = await serve(hooks=Hooks(before_terminate=before_terminate))
    done, unfinished = await client.whole(b"hello"), await client.create(5)
    assert (await client.delete(done)).status == 409
    assert await client.content(done) == b"hello"
    assert (await client.delete(unfinished)).status == 204
