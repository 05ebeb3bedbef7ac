"""`tidegate migrate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from tidegate.cli import offline
from tidegate.cli.errors import Failure
from tidegate.config import StoreConfig
from tidegate.ports import MetadataStore, Versioned


def migrate(
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be done")] = False,
    json: offline.Json = False,
    config: offline.ConfigFile = None,
) -> int:
    """Bring the records' schema to the version that this tidegate knows, or make it.

    A server does this by itself when it starts; this is for doing it before, with the rights that
    it takes. Servers of the older version need not be stopped unless the changelog says so.
    """
    del config  # read with the other sources of settings
    store = offline.metadata(stores)
    if not isinstance(store, Versioned):
        raise Failure(f"{stores.metadata_url} has no schema: there is nothing to migrate")
    before, after = offline.run(_migrate(store, dry_run=dry_run))
    newest = store.newest_schema
    if json:
        offline.show({"dry_run": dry_run, "before": before, "after": after, "newest": newest})
    elif before == newest:
        print(f"schema {before}: up to date")
    else:
        verb = "would be brought" if dry_run else "brought"
        print(f"schema {before or '(none)'}: {verb} to {newest}")
    return 0


async def _migrate(store: MetadataStore, *, dry_run: bool) -> tuple[int, int]:
    """The version before and after."""
    assert isinstance(store, Versioned)  # noqa: S101  (the caller has seen to it)
    before = await store.schema_version()
    if before > store.newest_schema:
        raise Failure(
            f"schema {before} was written by a newer tidegate: this one knows {store.newest_schema}"
        )
    if dry_run or before == store.newest_schema:
        return before, before
    await store.open()
    await store.close()
    return before, await store.schema_version()
