"""Every place of the product that asks for a sync: each makes a build that lacks just that one."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.disk_trace import COMMIT, DATABASE, LOG, NEW_FILE, PACKAGE, SQLITE, Sync

ASKING = frozenset(
    "fsync fdatasync sync sync_data sync_directory sync_names sync_new_name sync_blocking between "
    "_sync _sync_behind".split()
)
"""Functions that sync, and those that do nothing else."""
DURABLE = frozenset(["commit", "insert", "finish"])
"""Functions that sync when they are told that it should be durable."""
BEST_SEEN = {
    "stores/layout.py _templates: fsync": "templates",
    "engine/append.py _Receiver._checkpoint: commit": "killed",
}
"""In which scenario it is best seen, where the others take long to show it."""
ELSEWHERE = (
    "testing/",
    "stores/memory.py",
    "metadata/memory.py",
    "cli/",
    "transports/",
    "engine/measured.py",
)
"""Where nothing is written to a disk, or only handed on."""


@dataclass(frozen=True)
class Build:
    """The product without the syncs that go through one place."""

    name: str
    file: str
    first: int
    last: int

    def __str__(self) -> str:
        return self.name

    def lacks(self, sync: Sync) -> bool:
        """Whether a sync does not happen in this build: all who asked for it did so from here."""
        return all(
            any(
                frame.file == self.file and self.first <= frame.line <= self.last for frame in stack
            )
            for stack in sync.causes
        )


def builds() -> list[Build]:
    """One for each call that syncs, or asks for something to be durable; and SQLite's own."""
    found: list[Build] = []
    for path in sorted(Path(PACKAGE).rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(ELSEWHERE):
            found += _builds(file, ast.parse(path.read_text()))
    found += [
        Build(f"SQLite: {what}", SQLITE, frame.line, frame.line)
        for what, frame in (
            ("the log at a durable commit", COMMIT),
            ("the log before a checkpoint", LOG),
            ("the database after a checkpoint", DATABASE),
            ("the folder of a new log or journal", NEW_FILE),
        )
    ]
    return found


def _builds(file: str, tree: ast.Module) -> Iterator[Build]:
    seen: Counter[str] = Counter()
    for function, call in _calls(tree, ""):
        name = _name(call.func)
        durable = next((k.value for k in call.keywords if k.arg == "durable"), None)
        asks = durable is not None and not (
            isinstance(durable, ast.Constant) and durable.value is False
        )
        if name not in ASKING and not (asks and name in DURABLE):
            continue
        label = f"{file} {function}: {name}"
        seen[label] += 1
        number = f" ({seen[label]})" if seen[label] > 1 else ""
        assert call.end_lineno is not None
        yield Build(f"{label}{number}", file, call.lineno, call.end_lineno)


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inside = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{function}.{child.name}".lstrip(".")
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, inside)


def _name(function: ast.expr) -> str:
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
