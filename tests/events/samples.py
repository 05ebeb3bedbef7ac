"""Deliveries to tell."""

from __future__ import annotations

from typing import Any

from tidegate.ports import Delivery
from tidegate.protocol.model import Event, EventType, Upload, UploadId

AT = 1_700_000_000.25


def upload(**fields: Any) -> Upload:
    fields.setdefault("id", UploadId("abc-1"))
    fields.setdefault("created_at", AT - 10)
    fields.setdefault("active_at", AT - 5)
    return Upload(**fields)


def delivery(
    sequence: int = 7,
    kind: EventType = EventType.COMPLETED,
    attempts: int = 0,
    **fields: Any,
) -> Delivery:
    return Delivery(sequence, Event(type=kind, at=AT, upload=upload(**fields)), attempts)
