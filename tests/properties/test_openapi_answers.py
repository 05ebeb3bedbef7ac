"""Whatever is asked, the server answers nothing that its OpenAPI document does not list."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.support.exchange import STREAM, TUS
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemathesis import APIOperation, Case

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 60
"""Of each operation and each of two modes: some hundreds of requests, in seconds."""


@schemathesis.serializer(STREAM)
def as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(params=["native", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = ("--transport", request.param, "--durability", "none", "--log-level", "warning")
    with ServerProcess(tmp_path / "data", *flags, "--max-size", "1MiB") as server:
        yield server


@pytest.mark.timeout(300)
def test_nothing_is_answered_that_the_document_does_not_list(server: ServerProcess) -> None:
    """Requests that fit the document, and that break it in one place, on uploads in every state.

    Nothing may be 5xx but 501, 503 and 507, which say what they mean.
    """
    root = server.url.removesuffix("/files/")
    answered: dict[str, set[int]] = {}
    with requests.Session() as session:
        found = session.get(f"{root}/openapi.json", timeout=10).json()
        uploads = Uploads(session, server.url)
        for each in schemathesis.openapi.from_dict(found).get_all_operations():
            assert isinstance(each, Ok)
            operation = each.ok()
            answered[operation.label] = statuses = set()
            for mode in GenerationMode:
                statuses |= asked(operation, mode, uploads, session, root)
    everything = set().union(*answered.values())
    assert not everything & {*range(500, 600)} - {501, 503, 507}
    # It was no walk past closed doors.
    assert {201, 400, 412, 415} <= answered["POST /files/"]
    assert {200, 404, 410, 412} <= answered["HEAD /files/{id}"]
    assert {204, 403, 404, 409, 410} <= answered["PATCH /files/{id}"]
    assert {204, 404, 410} <= answered["DELETE /files/{id}"]
    assert {200, 403, 404, 410} <= answered["GET /files/{id}"]


def asked(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    uploads: Uploads,
    session: requests.Session,
    root: str,
) -> set[int]:
    """Ask for one operation in many ways; what was answered."""
    statuses = set[int]()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=mode),
        make=st.sampled_from([None, *uploads.kinds]),
        offset=st.sampled_from([None, "0", "3", "5"]),
        more=st.fixed_dictionaries(
            {"Accept": st.sampled_from(["*/*", "application/problem+json"])},
            optional={"Content-Type": st.sampled_from([*[STREAM] * 5, "text/plain"])},
        ),
        plain=st.booleans(),
    )
    def ask(
        case: Case[Any],
        make: Callable[[], str] | None,
        offset: str | None,
        more: dict[str, str],
        *,
        plain: bool,
    ) -> None:
        case.headers.update(more)
        if plain:
            # What fits the document is hardly ever right, all at once.
            for name in ("Upload-Checksum", "Upload-Length", "Upload-Concat"):
                case.headers.pop(name, None)
        if make is not None and case.path_parameters:
            case.path_parameters["id"] = make()
        if offset is not None and "Upload-Offset" in case.headers:
            case.headers["Upload-Offset"] = offset
        response = case.call(base_url=root, session=session, timeout=10)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing in it that can be broken
    return statuses


class Uploads:
    """Makes uploads in the states that there are, and tells their ids."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self._session = session
        self._url = url
        self.kinds = [self.begun, self.whole, self.deferred, self.gone, self.part, self.final]

    def begun(self) -> str:
        return self._made(b"abc", {"Upload-Length": "5"})

    def whole(self) -> str:
        return self._made(b"hello", {"Upload-Length": "5", "Upload-Metadata": "filename YQ=="})

    def deferred(self) -> str:
        return self._made(b"abc", {"Upload-Defer-Length": "1"})

    def gone(self) -> str:
        made = self.begun()
        self._session.delete(self._url + made, headers=TUS, timeout=10)
        return made

    def part(self) -> str:
        return self._made(b"hello", {"Upload-Length": "5", "Upload-Concat": "partial"})

    def final(self) -> str:
        return self._made(b"", {"Upload-Concat": f"final;{self._url}{self.part()}"})

    def _made(self, body: bytes, headers: dict[str, str]) -> str:
        if body:
            digest = base64.b64encode(hashlib.sha1(body).digest()).decode()
            headers = {**headers, "Content-Type": STREAM, "Upload-Checksum": f"sha1 {digest}"}
        answer = self._session.post(self._url, data=body, headers=TUS | headers, timeout=10)
        assert answer.status_code == 201, answer.text
        return answer.headers["Location"].rpartition("/")[2]
