"""Many small cases against one server: a parameter that costs no set-up."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Test = Callable[..., Awaitable[None]]


def each(names: str, cases: Iterable[Any]) -> Callable[[Test], Test]:
    """Like `pytest.mark.parametrize`, but all cases share the test's fixtures, one after another."""
    arguments = [name.strip() for name in names.split(",")]
    values = list(cases)

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def run(**fixtures: Any) -> None:
            for value in values:
                case = dict(zip(arguments, value if len(arguments) > 1 else (value,), strict=True))
                try:
                    await test(**fixtures, **case)
                except BaseException as error:
                    error.add_note(f"case: {case}")
                    raise

        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name not in arguments]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate
