"""One server for each example, for the tests of a module that need not stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.examples import MOUNTED, Example

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=MOUNTED)
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    with Example(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server
