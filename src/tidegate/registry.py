"""Which stores there are, by the scheme of their URL.

A store is named by an import string and imported when it is chosen, so that nobody needs the SDK of
a store that is not used.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from tidegate.metadata.postgres import address as postgres_address
from tidegate.metadata.redis import url as redis_url
from tidegate.stores.s3.options import S3Options

if TYPE_CHECKING:
    from tidegate.ports import DataStore, MetadataStore

DATABASE: Final = "tidegate.db"
"""The default name of the database in a data store's folder. The store lists and deletes only what
is below its own `incoming` and `finished`, which stand beside it."""
FILE_NAME: Final = "{shard}/{id}"
"""See `stores.naming.Template`."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)


class StoreURLError(ValueError):
    """A URL that names no store, or stores that do not go together; in words for the operator."""


class Options(NamedTuple):
    """What a data store is told beside its URL."""

    file_name: str = FILE_NAME
    """How finished files are named, where there are files."""
    s3: S3Options | None = None
    """How a bucket is used, if it is one; None: as it is by default."""


class _Kind(NamedTuple):
    """One kind of store, and how the class that `target` names is called."""

    target: str
    example: str
    locate: Callable[[str], Path | str | None]
    """What the store is built on, from what follows the scheme: a path on this machine, an address,
    or nothing. Raises StoreURLError, whose message goes after the URL."""
    build: Callable[[Any, Any, Options], Any]
    """Calls the class with what `locate` returned."""
    lasting: bool = True
    """Whether what it holds outlives the process."""
    extra: str = ""
    """The extra of this package without which it can't be imported."""


class _Found(NamedTuple):
    kind: _Kind
    place: Path | str | None

    @property
    def path(self) -> Path | None:
        """Where it is on this machine, if it is."""
        return self.place if isinstance(self.place, Path) else None


def _path(rest: str) -> Path:
    """`///absolute`, `/absolute` or `relative`, percent-encoded."""
    url = urlsplit(rest)
    if url.netloc:
        raise StoreURLError(
            f"has a host, {url.netloc}: expected three slashes before an absolute path,"
            " none before a relative one"
        )
    if url.query or url.fragment:
        raise StoreURLError("has a query or fragment: in a path write %3F for ?, %23 for #")
    return _plain(unquote(url.path))


def _plain(text: str) -> Path:
    if not text or "\0" in text:
        raise StoreURLError("has no path: expected one")
    return Path(text).expanduser()


def _bucket(rest: str) -> str:
    """`//bucket/prefix`, percent-encoded."""
    url = urlsplit(rest)
    if not _BUCKET.fullmatch(url.netloc):
        raise StoreURLError("has no bucket: expected s3://BUCKET or s3://BUCKET/PREFIX")
    if url.query or url.fragment:
        raise StoreURLError(
            "has a query or fragment: settings are flags (--s3-…); in a prefix write %3F for ?"
        )
    return url.netloc + unquote(url.path)


def _build_s3(store: Callable[..., DataStore], place: str, options: Options) -> DataStore:
    bucket, _, prefix = place.partition("/")
    return store(bucket, prefix, name=options.file_name, options=options.s3)


def _alone(rest: str) -> None:
    if rest not in ("", "//"):
        raise StoreURLError("goes on after its scheme: expected memory: alone")


def _postgresql(rest: str) -> str:
    url = f"postgresql:{rest}"
    try:
        postgres_address.parse(url)
    except postgres_address.AddressError as error:
        raise StoreURLError(str(error)) from None
    return url


def _redis(scheme: str, rest: str) -> str:
    url = f"{scheme}:{rest}"
    try:
        redis_url.parse(url)
    except ValueError as error:
        raise StoreURLError(str(error)) from None
    return url


_DATA: Final = {
    "file": _Kind(
        "tidegate.stores.local:LocalStore",
        "file:PATH",
        _path,
        lambda store, path, options: store(path, name=options.file_name),
    ),
    "s3": _Kind(
        "tidegate.stores.s3.store:S3Store",
        "s3://BUCKET",
        _bucket,
        _build_s3,
        extra="s3",
    ),
    "memory": _Kind(
        "tidegate.stores.memory:MemoryStore",
        "memory:",
        _alone,
        lambda store, _path, _options: store(),
        lasting=False,
    ),
}
_METADATA: Final = {
    "sqlite": _Kind(
        "tidegate.metadata.sqlite.store:SQLiteMetadataStore",
        "sqlite:PATH",
        _path,
        lambda store, path, _options: store(path),
    ),
    **{
        scheme: _Kind(
            "tidegate.metadata.postgres.store:PostgresMetadataStore",
            "postgresql://USER@HOST/DB",
            _postgresql,
            lambda store, url, _options: store(url),
            extra="postgresql",
        )
        for scheme in ("postgresql", "postgres")  # as libpq has it
    },
    **{
        scheme: _Kind(
            "tidegate.metadata.redis.store:RedisMetadataStore",
            "redis://HOST",
            functools.partial(_redis, scheme),
            lambda store, url, _options: store(url),
            extra="redis",
        )
        for scheme in redis_url.SCHEMES
    },
    "memory": _Kind(
        "tidegate.metadata.memory:MemoryMetadataStore",
        "memory:",
        _alone,
        lambda store, _path, _options: store(),
        lasting=False,
    ),
}

DATA_STORES: Final[Mapping[str, str]] = {name: kind.target for name, kind in _DATA.items()}
METADATA_STORES: Final[Mapping[str, str]] = {name: kind.target for name, kind in _METADATA.items()}


def data_store(url: str, options: Options | None = None) -> DataStore:
    """The data store at a URL, or in a folder; not opened yet. Raises StoreURLError.

    ValueError says what is wrong with an option.
    """
    store: DataStore = _build(_find_data(url), options)
    return store


def metadata_store(url: str) -> MetadataStore:
    """The metadata store at a URL, or in a file; not opened yet. Raises StoreURLError."""
    store: MetadataStore = _build(_find_metadata(url))
    return store


def default_metadata(data: str) -> str:
    """The metadata store that goes with a data store: a path, or a URL. Raises StoreURLError."""
    found = _find_data(data)
    if found.path is not None:
        # Absolute, so that nothing in it can be taken for a scheme.
        return str(found.path.absolute() / DATABASE)
    if found.kind.lasting:
        # Not a file that happens to be where the server was started: another server, or the same
        # from elsewhere, would take what is in the bucket for orphans.
        raise StoreURLError(f"{data} has no room for records: expected --metadata, too")
    return "memory:"


def check_data(url: str) -> str:
    """`url`, if it names a data store. Raises StoreURLError."""
    _find_data(url)
    return url


def check_metadata(url: str) -> str:
    """`url`, if it names a metadata store. Raises StoreURLError."""
    _find_metadata(url)
    return url


def check_pair(data: str, metadata: str) -> None:
    """Raise StoreURLError where one of two stores forgets at its end what the other keeps.

    Bytes that no record speaks of are orphans, which the sweep deletes; a record whose bytes are
    gone acknowledges an offset that is not true.
    """
    kept, known = _find_data(data).kind.lasting, _find_metadata(metadata).kind.lasting
    if kept and not known:
        raise StoreURLError(
            f"records in {without_password(metadata)} are lost at a stop, and files without records"
            " are deleted: expected metadata that lasts as data does, or data in memory:, too"
        )
    if known and not kept:
        raise StoreURLError(
            f"bytes in {without_password(data)} are lost at a stop, and records would speak of them"
            " for ever: expected metadata in memory:, too, or data that lasts"
        )


def folders(data: str, metadata: str) -> list[Path]:
    """The folders on this machine that two stores write to. Raises StoreURLError."""
    kept, known = _find_data(data).path, _find_metadata(metadata).path
    return [path for path in (kept, known and known.parent) if path is not None]


def metadata_path(metadata: str) -> Path | None:
    """The file of a metadata store, where it is one on this machine. Raises StoreURLError."""
    return _find_metadata(metadata).path


def _find_data(url: str) -> _Found:
    return _find(url, _DATA, "file", "a folder")


def _find_metadata(url: str) -> _Found:
    return _find(url, _METADATA, "sqlite", "a file")


def _find(url: str, kinds: Mapping[str, _Kind], plain: str, place: str) -> _Found:
    split = _SCHEME.fullmatch(url)
    try:
        if split is None:
            return _Found(kinds[plain], _plain(url))
        kind = kinds.get(split[1].lower())
        if kind is not None:
            return _Found(kind, kind.locate(split[2]))
    except StoreURLError as error:
        raise StoreURLError(f"{without_password(url)!r} {error}") from None
    # Not the whole URL, in which there may be a password.
    close = difflib.get_close_matches(split[1].lower(), kinds, n=1)
    hint = f" (did you mean {close[0]}: ?)" if close else ""
    path = "" if split[2].startswith("//") else f"; for a path with a colon write ./{split[1]}:…"
    raise StoreURLError(
        f"there is no store {split[1]}:{hint}; expected {place},"
        f" {' or '.join(dict.fromkeys(kind.example for kind in kinds.values()))}{path}"
    )


def without_password(url: str) -> str:
    """A store's URL as people and logs may see it."""
    url = re.sub(r"//.*@", "//…@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&]*", r"\1…", url)


def _build(found: _Found, options: Options | None = None) -> Any:
    module, _, name = found.kind.target.partition(":")
    try:
        store = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = found.kind.extra
        if not extra or (error.name or "").startswith("tidegate"):
            raise
        raise StoreURLError(
            f"this kind of store needs {error.name}, which is not installed: expected the extra"
            f" tidegate[{extra}]"
        ) from error
    return found.kind.build(store, found.place, options or Options())
