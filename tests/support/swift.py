"""OpenStack Swift with its S3 interface: one node, four processes, objects on this machine's disk.

An implementation of its own, and of the kind that operators run themselves: what works on it and
on moto is not owed to one server's habits.
"""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.s3_server import Processes, S3Server, answers, environment, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BACKENDS = ("account", "container", "object")
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {root}
[pipeline:main]
pipeline = catch_errors cache s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{nobody}
error_suppression_limit = 0
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
max_upload_part_num = 10000
min_segment_size = {least_part}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:symlink]
use = egg:swift#symlink
"""
BACKEND = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {root}
devices = {root}/node
mount_check = false
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
recon_cache_path = {root}/cache
"""


@contextmanager
def swift(root: Path, *, least_part: int = 5 * 1024 * 1024) -> Iterator[S3Server]:
    """A Swift below `root`, with parts of at least `least_part` bytes, until the context ends."""
    processes = Processes(root)
    try:
        yield _start(processes, root, least_part)
    finally:
        processes.stop()


def _start(processes: Processes, root: Path, least_part: int) -> S3Server:
    (root / "node" / "sdb1").mkdir(parents=True)
    (root / "cache").mkdir()
    (root / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = tide\nswift_hash_path_suffix = gate\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    nobody, port, *ports = free_ports(2 + len(BACKENDS))
    user = getpass.getuser()
    commands = Path(sys.executable).parent
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_RING, str(root / f"{kind}.builder"), str(backend)],
            env=environment(),
        )
        for kind, backend in zip(BACKENDS, ports, strict=True)
    ]
    for builder in builders:
        assert builder.wait(30) == 0, "no ring was built"
    values = {"root": root, "user": user, "nobody": nobody, "least_part": least_part}
    for kind, backend in zip(BACKENDS, ports, strict=True):
        conf = root / f"{kind}-server.conf"
        conf.write_text(BACKEND.format(**values, port=backend, kind=kind))
        command = commands / f"swift-{kind}-server"
        processes.start(kind, sys.executable, str(command), str(conf), env=environment())
    conf = root / "proxy-server.conf"
    conf.write_text(PROXY.format(**values, port=port))
    command = commands / "swift-proxy-server"
    processes.start("proxy", sys.executable, str(command), str(conf), env=environment())
    endpoint = f"http://127.0.0.1:{port}"
    for backend in (*ports, port):
        processes.wait_until(answers(f"http://127.0.0.1:{backend}/"))
    return S3Server(endpoint)


def note_multiparts(root: Path, bucket: str, names: Sequence[str]) -> None:
    """Have a Swift below `root` believe that these multipart uploads, by key and id, were begun in
    a bucket that has one already: to begin each takes it 40 ms.
    """
    subprocess.run(
        [sys.executable, "-c", NOTE, str(root / "node"), f"{bucket}+segments"],
        input=json.dumps(list(names)).encode(),
        env=environment(),
        timeout=30,
        check=True,
    )


# In a process of its own: Swift brings an event loop of another kind.
NOTE = """
import json, pathlib, sys
from swift.common.utils import Timestamp
from swift.container.backend import ContainerBroker
same = {"created_at": Timestamp.now().internal, "size": 0, "content_type": "none", "etag": "none",
    "deleted": 0, "storage_policy_index": 0, "ctype_timestamp": None, "meta_timestamp": None}
[broker] = [
    broker for path in pathlib.Path(sys.argv[1]).rglob("containers/**/*.db")
    if (broker := ContainerBroker(str(path))).get_info()["container"] == sys.argv[2]
]
broker.merge_items([{"name": name, **same} for name in json.load(sys.stdin)])
"""

# What swift-ring-builder does in three runs of a second each.
BUILD_RING = """
import sys
from swift.common.ring import RingBuilder
builder = RingBuilder(4, 1, 0)
builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(sys.argv[2]),
    "device": "sdb1", "weight": 1, "replication_ip": "127.0.0.1",
    "replication_port": int(sys.argv[2]), "meta": ""})
builder.rebalance(seed=1)
builder.save(sys.argv[1])
builder.get_ring().save(sys.argv[1].replace(".builder", ".ring.gz"))
"""
