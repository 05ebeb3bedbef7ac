"""What the engine asks of the outside: where bytes go, where records live, what time it is.

Each port says what the caller guarantees and what the implementer owes. `tidegate.testing` holds
checks that any implementation can be run through.

Two rules hold for every port: nothing blocks the event loop (a disk, a hash, a lock are waited for
in a worker thread), and a driver's own exception never crosses the port: it is translated, once, to
the exceptions named here.

    body.py        a request's bytes, and the sinks that they go to
    data.py        DataStore: where bytes go; what a store may be able to do besides
    metadata.py    MetadataStore: where records live; leases, and changes
    events.py      EventSink: who is told
    health.py      what either store may tell of how it does
    durability.py  what may be lost when the power goes
    clock.py       what time it is
    errors.py      what they raise
"""

from tidegate.ports.body import (
    Body,
    BodyEnd,
    Buffer,
    Digest,
    DirectSink,
    QuickBody,
    Sink,
    Splice,
    Store,
)
from tidegate.ports.clock import Clock
from tidegate.ports.data import (
    AheadStore,
    BlockingWriter,
    DataStore,
    Fence,
    FileStore,
    Flushed,
    LinkStore,
    OpenFile,
    PieceStore,
    Shown,
    SplicingWriter,
    Stored,
    WholeStore,
    Writer,
)
from tidegate.ports.durability import Durability
from tidegate.ports.errors import (
    BytesBusyError,
    BytesMissingError,
    DataError,
    DeliveryError,
    LeaseLostError,
    MetadataError,
    NoRoomError,
    NoSpaceError,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    SyncFailedError,
    UnavailableError,
    UnknownUploadError,
    UploadExistsError,
)
from tidegate.ports.events import (
    HANDED,
    Delivery,
    Ended,
    EventSink,
    HandingStore,
    Line,
    Outlet,
    Retry,
    Undelivered,
)
from tidegate.ports.health import ProbedStore, QueuedStore
from tidegate.ports.metadata import (
    Change,
    Counts,
    Grant,
    Held,
    Hold,
    Lease,
    Loaded,
    MetadataStore,
    Room,
    Versioned,
)

__all__ = [
    "HANDED",
    "AheadStore",
    "BlockingWriter",
    "Body",
    "BodyEnd",
    "Buffer",
    "BytesBusyError",
    "BytesMissingError",
    "Change",
    "Clock",
    "Counts",
    "DataError",
    "DataStore",
    "Delivery",
    "DeliveryError",
    "Digest",
    "DirectSink",
    "Durability",
    "Ended",
    "EventSink",
    "Fence",
    "FileStore",
    "Flushed",
    "Grant",
    "HandingStore",
    "Held",
    "Hold",
    "Lease",
    "LeaseLostError",
    "Line",
    "LinkStore",
    "Loaded",
    "MetadataError",
    "MetadataStore",
    "NoRoomError",
    "NoSpaceError",
    "OpenFile",
    "Outlet",
    "OverLimitError",
    "PartUnavailableError",
    "PieceStore",
    "PinnedError",
    "ProbedStore",
    "QueuedStore",
    "QuickBody",
    "Retry",
    "Room",
    "Shown",
    "Sink",
    "Splice",
    "SplicingWriter",
    "Store",
    "Stored",
    "SyncFailedError",
    "UnavailableError",
    "Undelivered",
    "UnknownUploadError",
    "UploadExistsError",
    "Versioned",
    "WholeStore",
    "Writer",
]
