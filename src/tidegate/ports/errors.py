"""What the ports raise."""

from __future__ import annotations

from tidegate.protocol.model import UploadId


class DataError(Exception):
    """The data store could not do what was asked. The message is for the operator only."""


class NoSpaceError(DataError):
    """There is no room. Nothing is wrong with what is stored."""


class SyncFailedError(DataError):
    """What was written may not survive a loss of power, though it can be read now.

    The operating system tells of it once: another sync would succeed and mean nothing. The caller
    goes back to what was synced before.
    """


class BytesBusyError(DataError):
    """Another process holds the upload's bytes: it is alive (perhaps paused) and may write."""


class BytesMissingError(DataError):
    """Bytes that the record speaks of are not there."""


class MetadataError(Exception):
    """The metadata store could not do what was asked; nothing was changed."""


class UnavailableError(MetadataError):
    """It cannot be reached or is busy, for now.."""


class NoRoomError(MetadataError):
    """It has no room for more records."""


class UploadExistsError(MetadataError):
    """There is, or was, an upload with this id."""


class UnknownUploadError(MetadataError):
    """There is no upload with this id."""


class PartUnavailableError(MetadataError):
    """A part of a new final upload is not there (any more)."""

    def __init__(self, part: UploadId) -> None:
        super().__init__(f"no partial upload {part}")
        self.part = part


class OverLimitError(MetadataError):
    """With the new upload, unfinished ones would need more room than they may."""


class PinnedError(MetadataError):
    """A pending final upload needs this partial."""


class LeaseLostError(MetadataError):
    """The lease is not held any more: someone else may be writing. Nothing was changed."""


class DeliveryError(Exception):
    """A sink did not take an event. The message is for the operator only, and tells no secret."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, final: bool = False
    ) -> None:
        """`retry_after`: not again before so many seconds; `final`: it never will."""
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final
