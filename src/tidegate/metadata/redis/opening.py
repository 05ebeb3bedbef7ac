"""What a Redis must be, so that nothing that was acknowledged is forgotten: looked at on opening."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from redis import exceptions as errors

from tidegate.metadata.redis import scripts
from tidegate.ports import MetadataError

if TYPE_CHECKING:
    from tidegate.metadata.redis.link import Link

log = logging.getLogger("tidegate.metadata")

SCHEMA = "3"
"""What keys there are, and what is in them."""

FAILOVER = "a failover to a replica may still undo what was acknowledged"


async def prepare(link: Link) -> None:
    """Refuse a server that can't keep the promises; take our place in it. Raises MetadataError."""
    shown = link.address.shown
    info = await _asked(link, "INFO")
    settings = await _asked(link, "CONFIG GET", "append*", "maxmemory-policy")
    if info is None:
        log.warning(
            "%s does not tell what it is (INFO is not permitted): whether it is a primary, and"
            " keeps what it acknowledged, is not known; %s", shown, FAILOVER
        )  # fmt: skip
    else:
        await _check_server(link, info)
    policy = _first("maxmemory-policy", settings) or _first("maxmemory_policy", info)
    if policy not in {None, "noeviction"}:
        raise MetadataError(
            f"{shown} forgets records when its memory is full (maxmemory-policy {policy}):"
            " expected maxmemory-policy noeviction"
        )
    _check_durability(link, settings, info)
    schema = await link.run(scripts.CLAIM_PLACE, schema=SCHEMA)
    if schema != SCHEMA.encode():
        raise MetadataError(
            f"{shown}: what has the prefix {link.address.prefix} is of another version,"
            f" {schema.decode('utf-8', 'replace')}: this one knows {SCHEMA}"
        )


async def _check_server(link: Link, info: dict[str, Any]) -> None:
    shown = link.address.shown
    version = str(info.get("redis_version", "7"))
    if int(version.partition(".")[0]) < 7:
        raise MetadataError(f"{shown} is Redis {version}: expected 7 or newer, or Valkey")
    role = info.get("role", "master")
    if role != "master":
        raise MetadataError(f"{shown} is a replica: expected the address of the primary")
    if info.get("cluster_enabled") == 1:
        cluster = await link.command("CLUSTER INFO")
        primaries = int(cluster.get("cluster_size", "1"))
        if primaries > 1:
            raise MetadataError(
                f"{shown} is a cluster of {primaries} primaries: expected one, for all records"
                " change together"
            )


def _check_durability(
    link: Link, settings: dict[str, Any] | None, info: dict[str, Any] | None
) -> None:
    """Whether what was acknowledged survives the death of the server, and of its machine."""
    shown = link.address.shown
    log_kept = _first("appendonly", settings)
    if log_kept is None and info is not None and "aof_enabled" in info:
        log_kept = "yes" if info["aof_enabled"] == 1 else "no"
    synced = _first("appendfsync", settings)
    if log_kept in {None, "yes"} and synced in {None, "always"}:
        if synced is None:
            log.warning(
                "%s does not tell its settings (CONFIG is not permitted). If it does not have"
                " appendonly yes and appendfsync always, a crash of it loses what was acknowledged;"
                " %s", shown, FAILOVER
            )  # fmt: skip
        return
    problem = (
        "keeps no log (appendonly no)"
        if log_kept == "no"
        else f"syncs its log behind its answers (appendfsync {synced})"
    )
    if link.address.checked:
        raise MetadataError(
            f"{shown} {problem}, so a crash of it loses what was acknowledged: set appendonly yes"
            f" and appendfsync always, or accept the loss with ?durability=unchecked ({FAILOVER})"
        )
    log.warning(
        "%s %s: a crash of it loses what was acknowledged, and %s", shown, problem, FAILOVER
    )


async def _asked(link: Link, *words: str) -> dict[str, Any] | None:
    """What the server says of itself, or None where it is not permitted to ask."""
    try:
        found: dict[str, Any] = await link.command(*words)
    except MetadataError as error:
        # Not permitted by its rules, or a command that the operator of a service took away.
        if isinstance(error.__cause__, errors.ResponseError):
            return None
        raise
    return found


def _first(name: str, found: dict[str, Any] | None) -> str | None:
    value = None if found is None else found.get(name)
    return None if value is None else str(value)
