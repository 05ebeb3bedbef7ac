"""The machine: what a figure means nothing without."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import psutil

from bench.subjects import libraries, said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.subjects import Subject


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on."""
    mounts = [
        (part.mountpoint, part.fstype)
        for part in psutil.disk_partitions(all=True)
        if folder.is_relative_to(part.mountpoint)
    ]
    return max(mounts, key=lambda mount: len(mount[0]))[1] if mounts else "?"


def machine() -> dict[str, Any]:
    """Of the machine, at this moment."""
    return {
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": libraries(),
        "go": said("go", "version") or "not there",
        "load before": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions(subjects: Sequence[Subject]) -> dict[str, str]:
    """What each subject is, or why it is not there."""
    return {
        subject.name: f"absent: {subject.absent}" if subject.absent else subject.version
        for subject in subjects
    }
