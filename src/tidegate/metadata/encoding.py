"""How records are written down, in every store that writes them: as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from tidegate.ports import Delivery, MetadataError, Retry
from tidegate.protocol.model import Event, Segment, Upload

if TYPE_CHECKING:
    from tidegate.ports import Line

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
_upload_decoder = msgspec.json.Decoder(Upload)
_segment_decoder = msgspec.json.Decoder(Segment)
_event_decoder = msgspec.json.Decoder(Event)
_handed_decoder = msgspec.json.Decoder(list[tuple[int, list[Event]]])
_retries_decoder: msgspec.json.Decoder[tuple[Retry, ...]] = msgspec.json.Decoder(tuple[Retry, ...])


def decode_upload(record: bytes | str) -> Upload:
    """The upload that was written down. Raises MetadataError."""
    return _decode(_upload_decoder, record)


def decode_segment(record: bytes | str) -> Segment:
    """The segment that was written down. Raises MetadataError."""
    return _decode(_segment_decoder, record)


def decode_event(record: bytes | str) -> Event:
    """The event that was written down. Raises MetadataError."""
    return _decode(_event_decoder, record)


def decode_handed(records: bytes | str) -> list[tuple[int, list[Event]]]:
    """What was written down together of several uploads: of each the sequence of its last event, and
    its events. Raises MetadataError.
    """
    return _decode(_handed_decoder, records)


def encode_delivery(delivery: Delivery) -> tuple[str, str]:
    """What is written down of how a delivery stands: `done`, with spaces between, and `retries`."""
    retries = encode(delivery.retries).decode() if delivery.retries else ""
    return " ".join(delivery.done), retries


def decode_delivery(
    sequence: int, record: bytes | str, done: str, retries: bytes | str
) -> Delivery:
    """The event that was written down, and how its delivery stands. Raises MetadataError."""
    delivery = Delivery(sequence, decode_event(record), 0)
    if not (done or retries):
        return delivery
    failed = _decode(_retries_decoder, retries) if retries else ()
    return delivery.after(done.split(), failed)


def due_at_once(line: Line) -> float:
    """Before all times, and the longer it waits the sooner."""
    return -1 / line.deliveries[0].sequence if line.deliveries else 0.0


def _decode(decoder: msgspec.json.Decoder[T], record: bytes | str) -> T:
    try:
        return decoder.decode(record)
    except msgspec.MsgspecError as error:
        raise MetadataError(f"a record that cannot be read: {error}") from error
