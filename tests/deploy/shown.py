"""What the files of `deploy/` and `docs/` say about tidegate: taken out of them."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(
    path for path in [*DEPLOY.rglob("*"), *(ROOT / "docs").glob("*.md")] if path.is_file()
)
FILL = {"POSTGRES_PASSWORD": "p", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "s"}


class Start(NamedTuple):
    """How one of the files starts a server."""

    name: str
    arguments: list[str]
    """After `serve`."""
    environment: dict[str, str]
    patience: float
    """Seconds from the request to stop to the kill, but for what passes before tidegate hears."""
    files: int | None
    """The limit on open files, where it is set."""


def compose() -> dict[str, Any]:
    """The compose file, with its variables filled in."""
    text = (DEPLOY / "compose/compose.yaml").read_text()
    filled = re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda match: FILL[match[1]], text)
    found: dict[str, Any] = yaml.safe_load(filled)
    return found


def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects, by their kind."""
    text = (DEPLOY / "kubernetes/tidegate.yaml").read_text()
    objects = list(yaml.safe_load_all(text))
    found = {each["kind"]: each for each in objects}
    assert len(found) == len(objects)
    return found


def unit(name: str) -> configparser.SectionProxy:
    """The Service section of a systemd unit, with `Environment` lines as they are (one at most)."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string((DEPLOY / "systemd" / name).read_text())
    return parser["Service"]


def starts() -> list[Start]:
    """Every way in which a server is started there."""
    found = []
    for name, service in compose()["services"].items():
        if service["image"] == "tidegate":
            patience = seconds(service["stop_grace_period"])
            files = service["ulimits"]["nofile"]
            found.append(Start(name, [], service["environment"], patience, files))
    objects = kubernetes()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = objects["ConfigMap"]["data"] | objects["Secret"]["stringData"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    patience = pod["terminationGracePeriodSeconds"] - before
    found.append(Start("kubernetes", container["args"][1:], environment, patience, None))
    for name in ("tidegate.service", "tidegate-cluster.service"):
        service = unit(name)
        program, verb, *arguments = shlex.split(service["ExecStart"])
        assert (program, verb) == ("/opt/tidegate/bin/tidegate", "serve")
        environment = dict(
            line.split("=", 1) for line in service.get("Environment", "").split() if line
        )
        if service["EnvironmentFile"] == "/etc/tidegate/cluster.env":
            environment |= env_file("systemd/cluster.env")
        patience, files = seconds(service["TimeoutStopSec"]), int(service["LimitNOFILE"])
        found.append(Start(name, arguments, environment, patience, files))
    return found


def env_file(name: str) -> dict[str, str]:
    """The variables of a file of them."""
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def seconds(text: str) -> float:
    """`15s` as a number."""
    return float(text.removesuffix("s"))
