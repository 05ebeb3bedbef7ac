"""The settings that say which stores."""

# No annotations as strings here: the command line reads those of the class that inherits these
# settings with the names of its module.
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from tidegate import registry
from tidegate.config.flags import ConfigError, one
from tidegate.config.parsers import parse_template
from tidegate.config.s3 import S3Config

STORES = Group("What is kept where", sort_key=3)


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class StoreConfig(S3Config):
    """Which stores: what every command that works on uploads has to know."""

    # Where the operator stands, under a name that nothing else uses: seen at once, deleted easily.
    data: Annotated[
        str,
        Parameter(
            group=STORES,
            converter=one(registry.check_data),
            metavar="URL",
            help="Bytes: folder, s3://BUCKET or memory:",
        ),
    ] = "tidegate-data"
    # Beside the data (None), so that one folder is moved, backed up or deleted, never half of it.
    metadata: Annotated[
        str | None,
        Parameter(
            group=STORES,
            converter=one(registry.check_metadata),
            metavar="URL",
            show_default=f"{registry.DATABASE} in data",
            help="File, postgresql: or redis: URL",
        ),
    ] = None
    # Short, safe whatever the client calls its file, and no folder grows beyond some thousands.
    file_name: Annotated[
        str,
        Parameter(
            group=STORES,
            converter=one(parse_template),
            metavar="NAME",
            help="Of finished files: {year}/{id}{ext}",
        ),
    ] = registry.FILE_NAME

    @property
    def metadata_url(self) -> str:
        """Where records live: what was said, or what goes with the data."""
        return self.metadata or registry.default_metadata(self.data)

    @property
    def data_options(self) -> registry.Options:
        """What the data store is told beside its URL."""
        return registry.Options(file_name=self.file_name, s3=self.s3_options)

    def __post_init__(self) -> None:
        """Check what concerns several settings."""
        try:
            registry.check_pair(self.data, self.metadata_url)
        except registry.StoreURLError as error:
            raise ConfigError(f"--data and --metadata: {error}") from None
        try:
            self.s3_options.check()
        except ValueError as error:
            raise ConfigError(f"--s3-part-size, --s3-memory, --s3-concurrency: {error}") from None
