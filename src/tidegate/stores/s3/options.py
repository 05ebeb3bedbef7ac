"""What an operator may say about a bucket and how it is used. Needs no SDK."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

MIB: Final = 1024 * 1024
LEAST_PART: Final = 5 * MIB
"""What S3 asks of every part but the last."""
MOST_PARTS: Final = 10_000
"""What S3 allows in one multipart upload, and the highest number of a part."""
LARGEST: Final = 5 * 1024 * 1024 * MIB
"""Bytes of an object, by S3's documentation for years; newer ones are larger, and few of them."""


class Checksums(enum.StrEnum):
    """By what the service sees that it received what was sent.

    Not by the newer x-amz-checksum headers: with those AWS completes only uploads whose parts are
    numbered without a gap ("the PartNumber must start at 1 and the part numbers must be
    consecutive", CompletedPart), and ours have gaps wherever a writer died.
    """

    SHA256 = "sha256"
    """Signed with the request: every service that knows signatures of version 4 checks it."""
    MD5 = "md5"
    """Content-MD5: for a service that does not. Half as quick to compute."""
    NONE = "none"
    """What TLS checks on the way has to do."""


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an S3 store. Sizes are bytes."""

    endpoint: str | None = None
    """The service's URL; None: what the SDK finds, or AWS."""
    region: str | None = None
    """None: what the SDK finds."""
    path_style: bool = False
    """The bucket in the path, not in the host's name: what most services beside AWS need."""
    # Twice the least: a request per 8 MiB costs AWS's customers half a cent per 8 GB.
    part_size: int = 8 * MIB
    """Of parts, as long as so many numbers are left that it can't be too small."""
    uniform_parts: bool = False
    """All parts but the last are of one size: what some services (R2) ask for."""
    # What a small container has.
    memory: int = 256 * MIB
    """Of all uploads together, for bytes that are not stored yet."""
    # What fills a gigabit over 100 ms with parts of 8 MiB.
    concurrency: int = 4
    """Parts of one upload that are on their way at the same time."""
    checksums: Checksums = Checksums.SHA256
    encryption: str | None = None
    """`AES256`, `aws:kms`, or `aws:kms:` and a key."""
    storage_class: str | None = None
    """Of finished objects; None: the bucket's own."""
    redirect_downloads: bool = False
    """Send who downloads to the bucket, with a link that is signed."""
    # Longer than a service's own patience with a part (20 s), and what throttling takes to end.
    patience: float = 60.0
    """Seconds for which a request that failed for the time being is made again."""
    # What common proxies wait.
    timeout: float = 30.0
    """Seconds without an answer after which a request is made again."""
    least_part: int = LEAST_PART
    """What the service asks of every part but the last. Smaller in tests only."""

    @property
    def most_part(self) -> int:
        """The largest part: four of them fit into the memory at any time."""
        return max(self.part_size, self.memory // 4)

    @property
    def max_size(self) -> int:
        """The largest upload that is sure to get its numbers, though half of them are burnt."""
        return min(LARGEST, self.most_part * MOST_PARTS // 2)

    def check(self) -> None:
        """Raise ValueError, in words for the operator, where settings do not fit together."""
        if self.part_size < self.least_part:
            raise ValueError(f"parts of {self.part_size} bytes: S3 wants {self.least_part}")
        if self.memory < 2 * self.part_size:
            raise ValueError(
                f"{self.memory} bytes of memory: expected room for two parts of {self.part_size}"
            )
        if self.concurrency < 1:
            raise ValueError(f"{self.concurrency} parts at a time: expected at least one")
