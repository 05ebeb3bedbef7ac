"""What the settings of every module are made with."""

from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import Token

from tidegate.config.parsers import parse_items


class ConfigError(ValueError):
    """Settings that do not fit together, in words for the operator."""


def one(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for a flag with one value: of several, the last counts."""
    return lambda _type, tokens: parse(tokens[-1].value)


def many(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for a flag with a list: separated by commas, or given several times."""
    parse_all = parse_items(parse)
    return lambda _type, tokens: parse_all([token.value for token in tokens])
