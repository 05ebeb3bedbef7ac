"""What came of a command, whatever dialect will tell of it."""

from __future__ import annotations

import msgspec

from tidegate.protocol.capabilities import Offer
from tidegate.protocol.model import Upload


class Created(msgspec.Struct, frozen=True):
    """The upload is there."""

    upload: Upload
    with_payload: bool
    """The request had a body, so that the offset is of interest."""


class Appended(msgspec.Struct, frozen=True):
    """The bytes are there."""

    upload: Upload


class Inspected(msgspec.Struct, frozen=True):
    """How far the upload is."""

    upload: Upload


class Terminated(msgspec.Struct, frozen=True):
    """The upload is gone."""


class Readable(msgspec.Struct, frozen=True):
    """The upload is complete; its bytes can be read."""

    upload: Upload


class Discovered(msgspec.Struct, frozen=True):
    """What the server can do."""

    offer: Offer


Result = Created | Appended | Inspected | Terminated | Readable | Discovered
