"""The settings of a data store in an S3 bucket."""

# No annotations as strings here: the command line reads those of the class that inherits these
# settings with the names of its module.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from tidegate.config.flags import one
from tidegate.config.parsers import parse_count, parse_size
from tidegate.stores.s3.options import Checksums, S3Options

_S3 = Group("Data in S3 (credentials: as for the AWS SDKs)", sort_key=3.5)
_DEFAULTS = S3Options()


def _bounded(parse: Callable[[str], int | None]) -> Callable[[str], int]:
    def parse_bounded(text: str) -> int:
        value = parse(text)
        if value is None:
            raise ValueError("expected a limit: memory has one")
        return value

    return parse_bounded


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class S3Config:
    """How a bucket is reached, and what is sent there. Sizes are bytes."""

    # What the SDK's own configuration says, or AWS.
    s3_endpoint: Annotated[
        str | None,
        Parameter(group=_S3, metavar="URL", help="Address of the service, where it is not AWS"),
    ] = None
    # What the SDK's own configuration says.
    s3_region: Annotated[
        str | None, Parameter(group=_S3, metavar="NAME", help="Where the bucket is")
    ] = None
    # AWS wants it in the host's name, and a service of one's own rarely has a name per bucket.
    s3_path_style: Annotated[
        bool, Parameter(group=_S3, help="Bucket in the path, not in the host's name")
    ] = _DEFAULTS.path_style
    # See S3Options.
    s3_part_size: Annotated[
        int,
        Parameter(
            group=_S3,
            converter=one(_bounded(parse_size)),
            metavar="SIZE",
            show_default="8MiB",
            help="Of parts; larger where it must be",
        ),
    ] = _DEFAULTS.part_size
    # Only services that ask for it need it: an upload of unknown length takes larger parts then.
    s3_uniform_parts: Annotated[
        bool, Parameter(group=_S3, help="Parts of one size only, as R2 wants them")
    ] = _DEFAULTS.uniform_parts
    # See S3Options.
    s3_memory: Annotated[
        int,
        Parameter(
            group=_S3,
            converter=one(_bounded(parse_size)),
            metavar="SIZE",
            show_default="256MiB",
            help="For parts, per process, all uploads together",
        ),
    ] = _DEFAULTS.memory
    # See S3Options.
    s3_concurrency: Annotated[
        int,
        Parameter(
            group=_S3,
            converter=one(_bounded(parse_count)),
            metavar="N",
            help="Parts of one upload sent at once",
        ),
    ] = _DEFAULTS.concurrency
    # Every service checks the signature, and so the digest in it.
    s3_checksum: Annotated[
        Literal["sha256", "md5", "none"],
        Parameter(group=_S3, metavar="NAME", help="Of what is sent: sha256, md5 or none"),
    ] = "sha256"
    # What the bucket's own settings say.
    s3_encryption: Annotated[
        str | None,
        Parameter(group=_S3, metavar="NAME", help="AES256, aws:kms or aws:kms:KEY"),
    ] = None
    # What the bucket's own settings say.
    s3_storage_class: Annotated[
        str | None, Parameter(group=_S3, metavar="NAME", help="Of finished objects")
    ] = None
    # A page that may read the server's answer need not be allowed to read the bucket's.
    s3_redirect_downloads: Annotated[
        bool, Parameter(group=_S3, help="Send a GET on to the bucket, by a signed link")
    ] = _DEFAULTS.redirect_downloads

    @property
    def s3_options(self) -> S3Options:
        """The same in the store's words."""
        return S3Options(
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            path_style=self.s3_path_style,
            part_size=self.s3_part_size,
            uniform_parts=self.s3_uniform_parts,
            memory=self.s3_memory,
            concurrency=self.s3_concurrency,
            checksums=Checksums(self.s3_checksum),
            encryption=self.s3_encryption,
            storage_class=self.s3_storage_class,
            redirect_downloads=self.s3_redirect_downloads,
        )
