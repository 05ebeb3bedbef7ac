"""The files of `deploy/` hold together, and name only what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from tests.deploy.shown import (
    DEPLOY,
    FILES,
    ROOT,
    Start,
    compose,
    env_file,
    kubernetes,
    seconds,
    starts,
    unit,
)

from tidegate import registry
from tidegate.cli import app, run
from tidegate.cli.descriptors import BESIDE, PER_UPLOAD
from tidegate.cli.server import KEEP_ALIVE, SAVE_WITHIN
from tidegate.config import Config
from tidegate.stores.s3.options import S3Options
from tidegate.transports.monitoring import PROBE_WITHIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STARTS = starts()
OTHERS = {
    "--build", "--now", "--no-build-isolation", "--no-deps", "--require-hashes", "--from",
    "--home-dir", "--shell", "--system", "--uid", "--user-group",
    "--help", "--version", "--interval", "--start-interval", "--start-period", "--timeout",
}  # fmt: skip
"""Flags that are other programs': of docker, pip, useradd, systemctl."""


def tidegate(*arguments: str, **environment: str) -> str:
    """What a command says."""
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("TIDEGATE_")} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag of every command, as `--help` shows them."""
    commands = [name for name in app if not name.startswith("-")]
    assert "serve" in commands
    # Not a process for each.
    with redirect_stdout(StringIO()) as out:
        assert not any(run([name, "--help"]) for name in commands)
    shown = out.getvalue()
    found = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9]", shown))
    negatable = re.findall(r"--\[no-\]([a-z0-9-]+)", shown)
    return found | {f"--{sign}{name}" for name in negatable for sign in ("", "no-")}


def named(pattern: str) -> Iterator[tuple[Path, str]]:
    for path in FILES:
        for match in re.finditer(pattern, path.read_text()):
            yield path, match[1]


def test_every_flag_that_is_named_exists(flags: set[str]) -> None:
    """In configurations, their comments, and the documentation."""
    mentioned = list(named(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])"))
    assert len(mentioned) > 20
    unknown = {f"{p.name}: {flag}" for p, flag in mentioned if flag not in flags | OTHERS}
    assert not unknown


def test_every_variable_that_is_named_exists(flags: set[str]) -> None:
    """TIDEGATE_MAX_SIZE is --max-size."""
    mentioned = list(named(r"(?<!\w)TIDEGATE_([A-Z0-9_]+)\b"))
    assert len(mentioned) > 10
    unknown = {
        f"{p.name}: {name}"
        for p, name in mentioned
        if f"--{name.lower().replace('_', '-')}" not in flags
    }
    assert not unknown


def test_every_url_that_is_named_can_be_used() -> None:
    """Their parameters are the stores' own."""
    urls = list(named(r"((?:postgres(?:ql)?|rediss?|valkeys?)://[^\s`'\"]+)"))
    assert len(urls) > 5
    for _, url in urls:
        if "${" not in url:  # compose() has those, filled in
            registry.check_metadata(url.rstrip(".,;)"))


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_the_settings_are_accepted(start: Start, tmp_path: Path) -> None:
    """By tidegate itself, with every value read, and from where it was meant to come."""
    (tmp_path / "empty.toml").touch()
    config = ["config", "--json", "--config", str(tmp_path / "empty.toml")]
    said = json.loads(tidegate(*config, *start.arguments, **start.environment))
    for name in start.environment:
        if name.startswith("TIDEGATE_"):
            setting = name.removeprefix("TIDEGATE_").lower().replace("_", "-")
            assert said[setting]["source"] == f"environment ({name})"


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_a_stop_is_waited_for(start: Start) -> None:
    """Nobody kills a server that still saves what came, or raises its limit on open files."""
    timeout = Config.shutdown_timeout
    assert timeout is not None
    if "--shutdown-timeout" in start.arguments:
        timeout = seconds(start.arguments[start.arguments.index("--shutdown-timeout") + 1])
    timeout = seconds(start.environment.get("TIDEGATE_SHUTDOWN_TIMEOUT", f"{timeout:g}s"))
    assert start.patience >= timeout + 2 * SAVE_WITHIN
    if start.files is not None:
        assert Config.max_concurrent is not None
        assert start.files >= BESIDE + PER_UPLOAD * Config.max_concurrent


def test_what_compose_needs_is_there() -> None:
    """Files that are mounted, services that are waited for, variables, addresses of servers."""
    found = compose()
    services = found["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            known = source in found["volumes"]
            assert known or (DEPLOY / "compose" / source).resolve().is_file(), volume
    build = services["tidegate-1"]["build"]
    context = (DEPLOY / "compose" / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose/compose.yaml").read_text()))
    assert asked == set(env_file("compose/example.env"))
    proxied = re.findall(r"server (tidegate-\d):1080", (DEPLOY / "nginx/tidegate.conf").read_text())
    assert proxied == [name for name in services if name.startswith("tidegate-")]
    assert str(json.loads(found["configs"]["s3"]["content"])).count("uploads") == 4


def test_memory_is_enough_for_parts() -> None:
    """The budget for parts, and as much again."""
    assert compose()["services"]["tidegate-1"]["mem_limit"] == "768m"
    (container,) = pod()["containers"]
    assert container["resources"]["limits"]["memory"] == "768Mi"
    assert S3Options().memory * 2 < 768 * 2**20


def pod() -> dict[str, Any]:
    found: dict[str, Any] = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    return found


def test_kubernetes_objects_agree() -> None:
    """Labels, ports, names; and a voluntary disruption leaves most servers at work."""
    objects = kubernetes()
    assert all(each["apiVersion"] and each["metadata"]["name"] for each in objects.values())
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["Service"]["spec"]["sessionAffinity"] == "None"
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] == deployment["replicas"] - 1
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == Config.port
    metrics = objects["ConfigMap"]["data"]["TIDEGATE_METRICS_LISTEN"]
    assert metrics.endswith(f":{ports['metrics']}")
    sources = {name for each in container["envFrom"] for name in (each.popitem()[1]["name"],)}
    assert sources == {objects[kind]["metadata"]["name"] for kind in ("ConfigMap", "Secret")}
    # Else Kubernetes sets TIDEGATE_PORT, to something that is no port.
    assert objects["Service"]["metadata"]["name"] != "tidegate" or not pod()["enableServiceLinks"]
    (rule,) = objects["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == objects["Service"]["metadata"]["name"]
    assert backend["port"]["name"] == objects["Service"]["spec"]["ports"][0]["name"]


def test_kubernetes_asks_what_is_answered() -> None:
    """Probes wait longer than an answer may take, and no store decides who is killed."""
    (container,) = pod()["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}
    assert paths["liveness"] == {"path": "/healthz", "port": "http"}
    assert paths["readiness"] == {"path": "/readyz", "port": "http"}
    assert container["readinessProbe"]["timeoutSeconds"] > PROBE_WITHIN


def test_proxies_close_first() -> None:
    """An idle connection is closed by the proxy, before the server would."""
    idle = {
        "nginx/tidegate.conf": r"keepalive_timeout (\d+)s;",
        "caddy/Caddyfile": r"keepalive (\d+)s",
        "haproxy/haproxy.cfg": r"timeout http-keep-alive (\d+)s",
    }
    for name, pattern in idle.items():
        (shown,) = re.findall(pattern, (DEPLOY / name).read_text())
        assert int(shown) < KEEP_ALIVE


def test_proxies_wait_longer_than_the_server() -> None:
    """It is tidegate that ends what stalls, since it says so and keeps what came."""
    assert Config.idle_timeout is not None
    waits = {
        "nginx/tidegate.conf": r"(?:client_body_timeout|proxy_send_timeout) (\d+)s",
        "haproxy/haproxy.cfg": r"timeout (?:client|server) (\d+)s",
    }
    for name, pattern in waits.items():
        shown = re.findall(pattern, (DEPLOY / name).read_text())
        assert len(shown) == 2
        assert all(int(each) > Config.idle_timeout for each in shown)


def test_the_units_let_nothing_be_written_but_the_data() -> None:
    """ProtectSystem=strict makes all read-only; StateDirectory is the exception."""
    for name in ("tidegate.service", "tidegate-cluster.service"):
        service = unit(name)
        assert service["ProtectSystem"] == "strict"
        assert service["User"] != "root"
        assert service["Type"] == "exec"
        assert "ReadWritePaths" not in service
    alone = unit("tidegate.service")
    assert alone["Environment"] == f"TIDEGATE_DATA=/var/lib/{alone['StateDirectory']}"
    assert "StateDirectory" not in unit("tidegate-cluster.service")


# ------------------------------------------------------------ the image


def test_what_the_image_copies_is_there() -> None:
    """And gets past the list of what is not sent to the builder."""
    text = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert sources
    for source in " ".join(sources).split():
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in ignored
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert f"127.0.0.1:{Config.port}/healthz" in text


def test_the_image_has_the_versions_that_the_tests_have() -> None:
    """requirements/image.txt is a part of requirements/dev.txt, hashes and all."""

    def pins(name: str) -> dict[str, set[str]]:
        text = (ROOT / "requirements" / name).read_text()
        found = re.findall(r"^([a-z0-9._-]+==\S+)((?:.*\\\n\s+--hash=\S+)+)", text, re.MULTILINE)
        return {pin: set(re.findall(r"--hash=(\S+)", hashes)) for pin, hashes in found}

    image, dev = pins("image.txt"), pins("dev.txt")
    assert len(image) > 30
    assert image.items() <= dev.items()
    names = {pin.partition("==")[0] for pin in image}
    assert {"asyncpg", "redis", "aiobotocore", "httpx", "pyjwt", "blake3", "hatchling"} <= names
    assert not names & {"pytest", "moto", "swift"}
