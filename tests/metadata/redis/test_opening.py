"""What the Redis store asks of a server before it trusts it, and what a URL may say."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.metadata.conftest import ALL_SORTS, UNDONE
from tests.support.logs import logs_kept
from tests.support.valkey import Valkey, command, running

from tidegate.metadata.redis import opening as redis_opening
from tidegate.metadata.redis import url as redis_url
from tidegate.metadata.redis.link import Link
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import MetadataError, UnavailableError
from tidegate.testing.metadata.support import NOW, add, end_claim, event, opened, upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import redis

pytestmark = pytest.mark.anyio

REWRITES = ("scheduled", "in_progress")


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """One that may be misconfigured: `client` puts it right again."""
    with running() as server:
        yield server


@pytest.fixture
def client(server: Valkey) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")
        # Until its log is whole again it refuses to be stopped.
        while any(client.info("persistence")[f"aof_rewrite_{what}"] for what in REWRITES):
            time.sleep(0.01)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    with logs_kept() as records:
        yield records


def messages(logged: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in logged]


async def works(url: str) -> None:
    async with opened(lambda: RedisMetadataStore(url)) as store:
        record = upload()
        await add(store, record)
        assert await store.load(record.id)


async def refused(url: str, why: str, *, patience: float = 5.0) -> None:
    with pytest.raises(MetadataError, match=why):
        await RedisMetadataStore(url, patience=patience).open()


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("appendonly", "no", "keeps no log"),
        ("appendfsync", "everysec", "appendfsync everysec"),
        ("appendfsync", "no", "appendfsync no"),
    ],
)
async def test_refuses_a_server_that_forgets(
    server: Valkey,
    client: redis.Redis,
    logged: list[logging.LogRecord],
    setting: str,
    value: str,
    problem: str,
) -> None:
    """It says what to set, and how to accept the loss; then it is a warning."""
    client.config_set(setting, value)
    await refused(server.url(), f"{problem}.*appendonly yes and appendfsync always.*failover")
    await works(server.url(durability="unchecked"))
    (warning,) = messages(logged)
    assert problem in warning
    assert "loses what was acknowledged" in warning


async def test_refuses_a_server_that_evicts(server: Valkey, client: redis.Redis) -> None:
    """Whatever the URL says."""
    client.config_set("maxmemory-policy", "allkeys-lru")
    for durability in ("checked", "unchecked"):
        url = server.url(durability=durability)
        await refused(url, "maxmemory-policy allkeys-lru.*expected maxmemory-policy noeviction")


async def test_refuses_a_replica(server: Valkey, client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")
    await refused(server.url(), "is a replica: expected the address of the primary")


async def test_refuses_a_cluster_of_two_but_not_of_one() -> None:
    """All records change together: they must be in one place."""
    cluster = {"cluster-enabled": "yes"}
    with running(**cluster) as one, one.client() as client:
        command(client, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while client.cluster("INFO")["cluster_state"] != "ok":
            time.sleep(0.01)
        await works(one.url())
        command(client, "CLUSTER", "DELSLOTSRANGE", "8192", "16383")
        with running(**cluster) as two, two.client() as other:
            command(other, "CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
            command(client, "CLUSTER", "MEET", "127.0.0.1", str(two.port))
            while client.cluster("INFO")["cluster_size"] != "2":
                time.sleep(0.01)
            await refused(one.url(), "cluster of 2 primaries: expected one")


async def test_refuses_an_old_server() -> None:
    """There is none to be had for a test: what it would say of itself is enough."""
    link = Link(redis_url.parse("redis://nowhere"), boot_id="", patience=1)
    with pytest.raises(MetadataError, match=r"Redis 6\.2\.14: expected 7 or newer"):
        await redis_opening._check_server(link, {"redis_version": "6.2.14", "role": "master"})


async def test_refuses_what_a_newer_version_left(server: Valkey, client: redis.Redis) -> None:
    url = server.url("newer")
    await works(url)
    client.set("{newer}:schema", "4")
    await refused(url, "prefix newer is of another version, 4: this one knows 3")


async def test_what_was_to_be_delivered_still_is(server: Valkey, client: redis.Redis) -> None:
    """Of keys from when an event was told to all sinks before the next: version 1."""
    url = server.url("older")
    one, two, three = upload(), upload(), upload()
    async with opened(lambda: RedisMetadataStore(url)) as old:
        await old.insert(one, events=[event(one), event(one)])
        await old.insert(two, events=[event(two)])
        (line, given) = await old.claim_events(NOW, 10, 60)
        await end_claim(old, line, kept=line.deliveries, due_at=NOW)
        await end_claim(old, given, given_up=given.deliveries)
        await old.insert(three, events=[event(three)])
        client.delete("{older}:lines", "{older}:claims")
        client.zadd("{older}:due", {f"{1:016}": NOW + 50, f"{4:016}": 0})
        client.set("{older}:schema", "1")
        async with opened(lambda: RedisMetadataStore(url)) as store:
            (third,) = await store.claim_events(NOW + 49, 10, 60)
            assert [d.sequence for d in third.deliveries] == [4]
            (first,) = await store.claim_events(NOW + 50, 10, 60)
            assert [d.sequence for d in first.deliveries] == [1, 2]
            assert await store.replay(3)
            (second,) = await store.claim_events(NOW, 10, 60)
            assert second.upload_id == two.id
    assert client.get("{older}:schema") == "3"
    # What one of version 1 would look for, before it wrote anything.
    assert client.type("{older}:due") == "string"


async def test_what_was_undone_still_is(server: Valkey, client: redis.Redis) -> None:
    """Of keys from when that was not written down: version 2."""
    url = server.url("undone")
    async with opened(lambda: RedisMetadataStore(url)) as old:
        await add(old, *ALL_SORTS)
    client.delete("{undone}:undone")
    client.set("{undone}:schema", "2")
    async with opened(lambda: RedisMetadataStore(url)) as store:
        assert [one.id async for one in store.undone()] == UNDONE
    assert client.get("{undone}:schema") == "3"


async def test_refuses_keys_that_are_not_ours(server: Valkey, client: redis.Redis) -> None:
    client.set("{taken}:lines", "x")
    await refused(server.url("taken"), "WRONGTYPE.*{taken}:lines is a string")


async def test_two_prefixes_know_nothing_of_each_other(server: Valkey) -> None:
    """Two installations may share a server."""
    first, second = server.url(), server.url()
    async with (
        opened(lambda: RedisMetadataStore(first)) as here,
        opened(lambda: RedisMetadataStore(second)) as there,
    ):
        record = upload()
        await add(here, record)
        assert await there.load(record.id) is None
        await add(there, record)


# ---------------------------------------------------------------------- what a server may not tell


def allow(client: redis.Redis, *rules: str) -> None:
    command(
        client, "ACL", "SETUSER", "ours", "reset", "on", ">s/cret#@", "~{*", "&{*", "+@all", *rules
    )


def as_ours(url: str, password: str = "s%2Fcret%23%40") -> str:
    return url.replace("redis://", f"redis://ours:{password}@")


async def test_warns_where_it_may_not_ask(
    server: Valkey, client: redis.Redis, logged: list[logging.LogRecord]
) -> None:
    """A managed service keeps CONFIG, and perhaps INFO, for itself."""
    allow(client, "-config")
    await works(as_ours(server.url()))
    (warning,) = messages(logged)
    assert "CONFIG is not permitted" in warning
    assert "failover" in warning
    allow(client, "-config", "-info")
    await works(as_ours(server.url()))
    assert "INFO is not permitted" in messages(logged)[1]


async def test_refuses_what_it_can_know_all_the_same(server: Valkey, client: redis.Redis) -> None:
    """INFO tells of the log and of eviction, too."""
    allow(client, "-config")
    client.config_set("appendonly", "no")
    await refused(as_ours(server.url()), "keeps no log")
    client.config_set("maxmemory-policy", "allkeys-lfu")
    await refused(as_ours(server.url()), "maxmemory-policy allkeys-lfu")


@pytest.mark.parametrize("rule", ["-zrem", "-hdel", "-@scripting"])
async def test_refuses_where_a_command_is_not_permitted(
    server: Valkey, client: redis.Redis, rule: str
) -> None:
    """Before a script is stopped by it in the middle."""
    allow(client, rule)
    await refused(as_ours(server.url()), "permission")


async def test_shows_no_password(
    server: Valkey, client: redis.Redis, logged: list[logging.LogRecord]
) -> None:
    """Neither a wrong one nor the right one, in no error and in no line of the log."""
    allow(client, "-config")
    wrong = as_ours(server.url(), "wr0ng")
    with pytest.raises(MetadataError, match="refuses the name or the password") as caught:
        await RedisMetadataStore(wrong).open()
    shown = [str(caught.value)]
    url = as_ours(server.url())
    async with opened(lambda: RedisMetadataStore(url)) as store:
        command(client, "ACL", "SETUSER", "ours", "-evalsha")
        with pytest.raises(MetadataError) as caught:
            await store.insert(upload())
        shown.append(str(caught.value))
    with pytest.raises(UnavailableError) as unavailable:
        await RedisMetadataStore("redis://ours:wr0ng@127.0.0.1:1", patience=0.1).open()
    shown += [str(unavailable.value), *messages(logged)]
    assert not re.search("wr0ng|cret", "".join(shown))


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    await refused(
        "redis://127.0.0.1:1", r"redis://127\.0\.0\.1:1: Error 111 connecting", patience=0.1
    )
    await refused(f"unix://{tmp_path}/none", f"unix://{tmp_path}/none: .*connecting", patience=0.1)


async def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    path = f"/tmp/tidegate-{tmp_path.name}.sock"
    with running(unixsocket=path):
        await works(f"unix://{path}?db=1&prefix=here")


async def test_opens_again_after_it_was_closed(server: Valkey) -> None:
    """And refuses, in words, what is asked meanwhile."""
    store = RedisMetadataStore(server.url())
    for _ in range(2):
        with pytest.raises(UnavailableError, match="closed"):
            await store.counts()
        await store.open()
        await store.counts()
        await store.close()
        await store.close()


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"driver_url": "redis://h", "shown": "redis://h"}),
        ("valkey://h:7000/2", {"driver_url": "redis://h:7000/2", "shown": "valkey://h:7000/2"}),
        ("valkeys://u:p@h", {"driver_url": "rediss://u:p@h", "shown": "valkeys://h"}),
        ("rediss://:p%40@[::1]:1/", {"shown": "rediss://[::1]:1/"}),
        ("redis://h?prefix=a:b", {"prefix": "a:b", "driver_url": "redis://h"}),
        ("redis://h?durability=unchecked", {"checked": False}),
        ("redis://h", {"checked": True, "prefix": "tidegate", "lease_ttl": 8.0, "heartbeat": 2.0}),
        ("redis://h?lease_ttl=4", {"lease_ttl": 4.0, "heartbeat": 1.0}),
        ("redis://h?lease_ttl=4&heartbeat=0.5", {"lease_ttl": 4.0, "heartbeat": 0.5}),
        ("rediss://h?ssl_ca_certs=/a/b", {"driver_url": "rediss://h?ssl_ca_certs=%2Fa%2Fb"}),
        ("unix:///a/b?db=3", {"driver_url": "unix:///a/b?db=3", "shown": "unix:///a/b"}),
    ],
)
def test_urls(url: str, expected: dict[str, Any]) -> None:
    found = redis_url.parse(url)._asdict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "is no URL of a Redis"),
        ("redis://", "has no host"),
        ("redis://h:x", "has a port"),
        ("redis://h:70000", "has a port"),
        ("redis://h/name", "not the number of a database"),
        ("redis://:se/cret@h", "ends its host too soon"),
        ("redis://:se#cret@h", "ends its host too soon"),
        ("redis://:se?cret=1@h", "ends its host too soon"),
        ("redis://h?prefx=a", "has prefx=: expected prefix, durability"),
        ("redis://h?prefix={a}", "has a prefix"),
        ("redis://h?durability=none", "durability=none: expected checked or unchecked"),
        ("redis://h?lease_ttl=x", "lease_ttl=x: expected seconds"),
        ("redis://h?lease_ttl=nan", "lease_ttl=nan: expected seconds"),
        ("redis://h?heartbeat=5", "at most half"),
        ("unix://a/b", "has no absolute path"),
    ],
)
def test_urls_that_are_none(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        RedisMetadataStore(url)
    assert "cret" not in str(caught.value)
