"""What webhooks and commands are told."""

from __future__ import annotations

import json

import pytest
from tests.events.samples import delivery

from tidegate.events.payload import payload
from tidegate.protocol.model import EventType, Kind, State, UploadId


def test_an_event_as_it_is_told() -> None:
    told = delivery(
        attempts=2,
        length=3,
        offset=3,
        state=State.COMPLETE,
        metadata="name aMOpLnR4dA==,raw /w==,flag",
        principal="someone",
        storage={"finished": "finished/ab/abc-1"},
        expires_at=None,
        ended_at=1_700_000_000.0,
        synced_offset=3,
        boot_id="a machine's own",
    )
    assert json.loads(payload(told)) == {
        "type": "upload.completed",
        "timestamp": "2023-11-14T22:13:20.250000Z",
        "data": {
            "key": "7-abc-1",
            "sequence": 7,
            "attempt": 3,
            "upload": {
                "id": "abc-1",
                "kind": "regular",
                "state": "complete",
                "length": 3,
                "offset": 3,
                "metadata": {"name": "hé.txt", "raw": None, "flag": ""},
                "metadata_raw": "name aMOpLnR4dA==,raw /w==,flag",
                "parts": [],
                "principal": "someone",
                "storage": {"finished": "finished/ab/abc-1"},
                "created_at": "2023-11-14T22:13:10.250000Z",
                "expires_at": None,
                "ended_at": "2023-11-14T22:13:20Z",
            },
        },
    }


def test_a_final_upload_names_its_parts() -> None:
    told = delivery(kind=EventType.CREATED, parts=(UploadId("a"), UploadId("b")), length=None)
    upload = json.loads(payload(told))["data"]["upload"]
    assert (upload["parts"], upload["length"]) == (["a", "b"], None)
    assert Kind.REGULAR.value == upload["kind"]


def test_metadata_that_is_none_is_told_to_the_letter() -> None:
    told = json.loads(payload(delivery(metadata="?? ??")))["data"]["upload"]
    assert (told["metadata"], told["metadata_raw"]) == ({}, "?? ??")


@pytest.mark.parametrize(
    ("upload_id", "key"),
    [("abc", "7-abc"), ("a.b/c", "7-a%2Eb%2Fc"), ("é\n", "7-%C3%A9%0A")],
)
def test_the_key_is_fit_for_a_header(upload_id: str, key: str) -> None:
    assert delivery(id=UploadId(upload_id)).key == key


def test_progress_has_a_key_of_its_own() -> None:
    keys = {delivery(0, EventType.PROGRESS, offset=offset).key for offset in (1, 2, 2)}
    assert keys == {"p1-abc-1", "p2-abc-1"}
