"""A folder that several machines share (NFS), with records that they share, too.

To a server another machine's writes look like its own before a reboot: the boot id is another one.
The machines here are one, so what is tried is tidegate's part, not the file system's.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.support.exchange import AsgiClient

from tidegate.asgi import Tidegate
from tidegate.cli import shared
from tidegate.config import Config
from tidegate.engine.core import Settings
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import Durability
from tidegate.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.valkey import Valkey


class OtherMachine(LocalStore):
    """The same folder, seen from a machine of its own."""

    async def open(self) -> None:
        """See LocalStore."""
        await super().open()
        self.boot_id = f"of-{id(self)}"


@asynccontextmanager
async def machines(
    valkey: Valkey, folder: Path, durability: Durability
) -> AsyncIterator[tuple[AsgiClient, AsgiClient]]:
    """A client of each of two machines."""
    url = valkey.url()
    async with AsyncExitStack() as stack:
        apps = [
            Tidegate(
                OtherMachine(folder),
                RedisMetadataStore(url),
                base_path="/files/",
                settings=Settings(durability=durability),
            )
            for _ in range(2)
        ]
        for app in apps:
            await stack.enter_async_context(app)
        yield AsgiClient(apps[0]), AsgiClient(apps[1])


@pytest.mark.anyio
async def test_what_was_acknowledged_stays_when_another_machine_goes_on(
    valkey: Valkey, tmp_path: Path
) -> None:
    """With `--durability ack` every acknowledgement is of synced bytes, which count everywhere."""
    async with machines(valkey, tmp_path, Durability.ACK) as (one, other):
        path = await one.create(10)
        for offset, client in ((0, one), (2, other), (4, one), (6, other), (8, one)):
            reply = await client.patch(path, offset, b"%02d" % offset)
            assert (reply.status, reply["upload-offset"]) == (204, str(offset + 2))
            assert await (other if client is one else one).offset(path) == offset + 2
        assert await other.content(path) == b"0002040608"


@pytest.mark.anyio
async def test_why_the_default_will_not_do(valkey: Valkey, tmp_path: Path) -> None:
    """Without it, what is not synced yet counts only where it was written.

    Nothing is broken by it (the client asks, and sends it again), but an acknowledgement is taken
    back; the documentation says so.
    """
    async with machines(valkey, tmp_path, Durability.COMPLETE) as (one, other):
        path = await one.create(10)
        assert (await one.patch(path, 0, b"01234")).status == 204
        assert await other.offset(path) == 0
        assert (await other.patch(path, 0, b"0123456789")).status == 204
        assert await one.content(path) == b"0123456789"


@pytest.mark.parametrize(
    ("metadata", "durability", "mount", "warned"),
    [
        ("redis://127.0.0.1", Durability.COMPLETE, "nfs4", True),
        ("redis://127.0.0.1", Durability.NONE, "ceph", True),
        ("redis://127.0.0.1", Durability.ACK, "nfs4", False),
        ("redis://127.0.0.1", Durability.COMPLETE, "ext4", False),
        ("sqlite:/elsewhere/tidegate.db", Durability.COMPLETE, "nfs4", False),
    ],
)
def test_a_server_warns_of_a_folder_that_may_be_shared(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    metadata: str,
    durability: Durability,
    mount: str,
    warned: bool,
) -> None:
    """By what the system says is mounted there."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"29 1 0:25 / {tmp_path} rw - {mount} host:/export rw\n")
    data = str(tmp_path / "data")
    shared.warn(Config(data=data, metadata=metadata, durability=durability), str(mounts))
    assert ("--durability ack" in caplog.text) is warned
