"""Real clients upload in each way that they know, and the server ends up with their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.interop.matrix import CASES, CLIENTS, Client, case
from tests.interop.stage import CHUNK, SIZE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

IN_CHUNKS = -(-SIZE // CHUNK)


@case("plain")
def test_plain(client: Client, stage: Stage) -> None:
    """A file in one request after its creation. In a browser, from a page of another origin."""
    url = stage.upload(client)
    stage.check_stored(url)
    assert [request.offset for request in stage.patches()] == [0], stage.proxy.log()
    if client.in_browser:
        preflights = stage.proxy.sent("OPTIONS")
        assert {r.fields["access-control-request-method"] for r in preflights} == {"POST", "PATCH"}
        assert all(r.fields["origin"] not in stage.server.url for r in stage.proxy.requests)


@case("empty")
def test_empty(client: Client, stage: Stage, tmp_path: Path) -> None:
    """A file without a byte is an upload all the same."""
    empty = tmp_path / "empty.bin"
    empty.touch()
    url = stage.upload(client, file=str(empty))
    stage.check_stored(url, empty)


@case("chunked")
def test_chunked(client: Client, stage: Stage) -> None:
    """A file in several requests, each at the offset where the last one ended."""
    url = stage.upload(client, chunk_size=CHUNK)
    stage.check_stored(url)
    offsets = [request.offset for request in stage.patches()]
    assert offsets == [CHUNK * number for number in range(IN_CHUNKS)], stage.proxy.log()


@case("with-creation")
def test_with_creation(client: Client, stage: Stage) -> None:
    """The creating request brings the first bytes (tusgo), or all of them."""
    url = stage.upload(client, with_creation=True)
    stage.check_stored(url)
    (creation,) = stage.creations()
    assert creation.fields["content-type"] == "application/offset+octet-stream"
    assert all(request.offset >= CHUNK for request in stage.patches()), stage.proxy.log()


@case("deferred")
def test_deferred(client: Client, stage: Stage) -> None:
    """The length is told when it is known: in Node and the browser, at the end of a stream."""
    url = stage.upload(client, deferred=True, chunk_size=CHUNK)
    stage.check_stored(url)
    (creation,) = stage.creations()
    assert creation.fields["upload-defer-length"] == "1"
    assert "upload-length" not in creation.fields
    told = [r.fields["upload-length"] for r in stage.patches() if "upload-length" in r.fields]
    assert set(told) == {str(SIZE)}, stage.proxy.log()


@case("parallel")
def test_parallel(client: Client, stage: Stage) -> None:
    """Parts travel side by side, and become one upload with bytes of its own."""
    url = stage.upload(client, parallel=3)
    stage.check_stored(url)
    concats = [request.fields.get("upload-concat", "") for request in stage.creations()]
    assert concats[:3] == ["partial"] * 3, stage.proxy.log()
    assert concats[3].startswith("final;")
    assert stage.head(url).headers["upload-concat"].startswith("final;")


@case("override")
def test_override(client: Client, stage: Stage) -> None:
    """PATCH as POST with X-HTTP-Method-Override, for networks that let no PATCH through.

    tus-java-client has no other way: its HTTP library knows no PATCH. It also expects
    `100 Continue` before it sends a byte.
    """
    url = stage.upload(client, override=True, chunk_size=CHUNK)
    stage.check_stored(url)
    assert not stage.proxy.sent("PATCH")
    assert len(stage.patches()) == IN_CHUNKS, stage.proxy.log()
    if client.driver == "java":
        assert all(request.fields["expect"] == "100-continue" for request in stage.patches())
        continued = [r for r in stage.proxy.responses if r.status == 100]
        assert len(continued) == IN_CHUNKS, stage.proxy.log()


@case("checksum")
def test_checksum(client: Client, stage: Stage) -> None:
    """Each request tells the digest of its bytes in its head."""
    url = stage.upload(client, checksum="header", chunk_size=CHUNK)
    stage.check_stored(url)
    digests = [request.fields["upload-checksum"] for request in stage.patches()]
    assert len(digests) == IN_CHUNKS
    assert all(digest.startswith("sha1 ") for digest in digests)


@case("checksum-trailer")
def test_checksum_trailer(
    client: Client, stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    """A stream tells its digest after its last byte, in a trailer that its head announces.

    A server whose transport can't read trailers must not offer it, and the client then refuses
    to try; the table says so.
    """
    if not stage.offers("checksum-trailer"):
        record_property("instead", "not offered")
        with stage.uploading(client, checksum="trailer") as driver:
            assert driver.result().error == "unsupported feature: checksum-trailer"
        return
    url = stage.upload(client, checksum="trailer")
    stage.check_stored(url)
    (patch,) = stage.patches()
    assert patch.fields["trailer"].lower() == "upload-checksum"
    assert patch.fields["transfer-encoding"] == "chunked"


@case("corrupted")
def test_corrupted(client: Client, stage: Stage) -> None:
    """A bit flips on the way: the server says 460 and keeps nothing, the client sends again."""
    stage.proxy.flip_after(CHUNK * 5 // 2)
    url = stage.upload(client, checksum="header", chunk_size=CHUNK, retry=True)
    stage.check_stored(url)
    refused = [response for response in stage.proxy.responses if response.status == 460]
    assert len(refused) == 1, stage.proxy.log()
    offsets = [request.offset for request in stage.patches()]
    assert offsets == [CHUNK * number for number in (0, 1, 2, 2, 3, 4, 5)], stage.proxy.log()


@case("terminate")
def test_terminate(client: Client, stage: Stage) -> None:
    """The client aborts half way, in the middle of a request, and has the upload deleted."""
    stage.proxy.hold_after(CHUNK * 5 // 2)
    with stage.uploading(client) as driver:
        stage.proxy.wait_held()
        driver.abort(terminate=True)
        result = driver.result()
    assert result.aborted, stage.story(result, driver)
    assert not result.error, stage.story(result, driver)
    url = stage.located(result)
    # Uppy tells nobody when the deletion is done.
    stage.wait_until(lambda: bool(stage.answers("DELETE")), "the deletion was not answered")
    assert stage.answers("DELETE") == [204], stage.proxy.log()
    assert stage.head(url).status_code in {404, 410}


def test_every_case_is_run_or_excused(request: pytest.FixtureRequest) -> None:
    """The table has no holes: each pair of client and case is a test, or has a reason."""
    files = set(Path(__file__).parent.glob("test_*.py"))
    if request.config.option.keyword or not files <= {item.path for item in request.session.items}:
        return  # a selection of tests: nothing to say about all
    run = {
        (str(item.callspec.params["client"]), str(marker.args[0]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and (marker := item.get_closest_marker("interop"))
    }
    excused = {(client.name, name) for client in CLIENTS for name in client.cannot}
    assert not run & excused
    assert run | excused == {(client.name, name) for client in CLIENTS for name in CASES}
