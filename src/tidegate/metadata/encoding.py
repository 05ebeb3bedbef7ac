"""How records are written down, in every store that writes them: as JSON."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tidegate.ports import MetadataError
from tidegate.protocol.model import Event, Segment, Upload

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
_upload_decoder = msgspec.json.Decoder(Upload)
_segment_decoder = msgspec.json.Decoder(Segment)
_event_decoder = msgspec.json.Decoder(Event)


def decode_upload(record: bytes | str) -> Upload:
    """The upload that was written down. Raises MetadataError."""
    return _decode(_upload_decoder, record)


def decode_segment(record: bytes | str) -> Segment:
    """The segment that was written down. Raises MetadataError."""
    return _decode(_segment_decoder, record)


def decode_event(record: bytes | str) -> Event:
    """The event that was written down. Raises MetadataError."""
    return _decode(_event_decoder, record)


def _decode(decoder: msgspec.json.Decoder[T], record: bytes | str) -> T:
    try:
        return decoder.decode(record)
    except msgspec.MsgspecError as error:
        raise MetadataError(f"a record that cannot be read: {error}") from error
