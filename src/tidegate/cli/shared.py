"""A word of warning about folders that several machines may share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tidegate import registry
from tidegate.metadata.sqlite.liveness import network_filesystem
from tidegate.ports import Durability

if TYPE_CHECKING:
    from tidegate.config import Config

MOUNTS: Final = "/proc/self/mountinfo"

log = logging.getLogger("tidegate.server")


def warn(settings: Config, mounts: str = MOUNTS) -> None:
    """Say so, where another machine's server could take back what this one acknowledged.

    That is where both may have the folder and the records, and bytes are acknowledged before they
    are synced: only the machine that wrote those can know that they are there.
    """
    if settings.durability is Durability.ACK or registry.metadata_path(settings.metadata_url):
        return
    for folder in registry.folders(settings.data, settings.metadata_url):
        if kind := network_filesystem(folder, mounts):
            log.warning(
                "%s is on a network file system (%s): if servers on several machines share it, each"
                " needs --durability ack, or what one acknowledged another may take back",
                folder,
                kind,
            )
