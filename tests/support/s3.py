"""S3 servers as fixtures: started when they are first asked for, one of each per process of tests.

The SDK, and the store, are imported then: what needs neither is not held up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.s3_server import S3Server

LEAST_PART = 64 * 1024
"""Bytes that a part must have: so that uploads of many parts are small."""


@pytest.fixture(scope="session")
def s3_credentials() -> Iterator[None]:
    from tests.support.s3_server import ENVIRONMENT

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def moto_server(
    s3_credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    from tests.support.moto import moto

    with moto(tmp_path_factory.mktemp("moto"), least_part=LEAST_PART) as server:
        yield server.make_bucket()


@pytest.fixture(scope="session")
def swift_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it keeps all that it has."""
    return tmp_path_factory.mktemp("swift")


@pytest.fixture(scope="session")
def swift_server(s3_credentials: None, swift_root: Path) -> Iterator[S3Server]:
    from tests.support.swift import swift

    with swift(swift_root, least_part=LEAST_PART) as server:
        yield server.make_bucket()
