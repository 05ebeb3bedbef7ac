"""Bearer tokens that the operator writes down, each with the name of who has it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio
from anyio import to_thread

from tidegate.auth.bearer import TOKEN, bearer_token, invalid
from tidegate.protocol.model import Principal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.hooks import Authorize, UploadRequest
    from tidegate.protocol.model import Upload

HASHED: Final = "sha256:"
SHORTEST: Final = 16
"""Characters: fewer can be guessed over a network, however they were made."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at a file: twice as long, at most, a token that was taken out counts."""
REMEMBERED: Final = 1024
"""How many spellings of known tokens are remembered: of each there are few."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger("tidegate.auth")


class TokenError(ValueError):
    """A list of tokens that can't be used; in words for the operator, with no token in them."""


class Tokens:
    """Knows tokens by their digests, and those that came by the fields that brought them, too. A
    request with one is made by the principal of its name.

    Each line of `lines` is a name, white space, and a token, or `sha256:` and the token's digest in
    hexadecimal; a name may have several tokens, so that they can be changed without a gap. Empty
    lines and those that begin with # say nothing. Raises TokenError.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._known = _principals(lines)
        self._seen: dict[str, Principal] = {}
        """By the fields that brought a known one. Where a field is looked for in it is decided by a
        keyed hash (PEP 456): the time that takes tells nothing of those that are near."""

    @staticmethod
    def from_file(path: str | Path) -> Tokens:
        """Those in a file; blocks. Raises TokenError."""
        return Tokens(_lines(path))

    @staticmethod
    def from_environment(name: str) -> Tokens:
        """Those in a variable, one per line, or with commas between them. Raises TokenError."""
        value = os.environ.get(name)
        if not value:
            raise TokenError("there is no such variable in the environment, or it is empty")
        return Tokens(re.split(r"[\n,]", value))

    def __call__(self, request: UploadRequest, upload: Upload | None) -> Principal:
        """Who has the request's token. Raises Denied."""
        del upload
        sent = request.sent.values(b"authorization")
        seen = self._seen.get(sent[0]) if len(sent) == 1 else None
        if seen is not None:
            return seen
        presented = hashlib.sha256(bearer_token(request).encode("ascii")).digest()
        found: Principal | None = None
        # All of them, so that the time it takes tells nothing.
        for digest, principal in self._known.items():
            if hmac.compare_digest(digest, presented):
                found = principal
        if found is None:
            raise invalid("it is not known here")
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[sent[0]] = found
        return found


class TokenFile(Tokens):
    """The tokens of a file, read again when it was changed. A context: only in it that is noticed.

    It blocks to be made. Raises TokenError; what is wrong later is logged, and the tokens that were
    there go on to be known.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._read = self._looked = _state(self._path)
        super().__init__(_lines(path))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(LOOK_EVERY)
            known = await to_thread.run_sync(self._look)
            if known is not None:
                # Not in the thread: whoever asks meanwhile would remember what is known no more.
                self._known, self._seen = known, {}

    def _look(self) -> dict[bytes, Principal] | None:
        """What is in the file if it is another one, and whoever writes it has come to an end."""
        before, self._looked = self._looked, _state(self._path)
        if self._looked == self._read or self._looked != before:
            return None
        self._read = self._looked
        try:
            known = _principals(_lines(self._path))
        except TokenError as error:
            log.error("%s: %s; the tokens that it had are still known", self._path, error)
            return None
        log.info("%s: read again", self._path)
        return known


def _lines(path: str | Path) -> list[str]:
    """Those of a file; blocks. Raises TokenError."""
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise TokenError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TokenError("is not text in UTF-8") from None


def _principals(lines: Iterable[str]) -> dict[bytes, Principal]:
    """Who has which token, by its digest. Raises TokenError."""
    known: dict[bytes, Principal] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise TokenError(
                f"line {number} has {len(words)} words: expected a name and a token, or"
                f" {HASHED} and its digest"
            )
        digest = _digest(words[1], number)
        if digest in known:
            raise TokenError(f"line {number} has the token of another line")
        try:
            known[digest] = Principal(id=words[0])
        except ValueError as error:
            raise TokenError(f"line {number}: {error}") from None
    if not known:
        raise TokenError("there are no tokens in it: expected lines of a name and a token")
    return known


def _state(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from what it was, or from another one; None: it can't be told. Blocks."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest(text: str, number: int) -> bytes:
    if text.startswith(HASHED):
        digest = text.removeprefix(HASHED).lower()
        if not _DIGEST.fullmatch(digest):
            raise TokenError(f"line {number}: expected 64 hexadecimal digits after {HASHED}")
        return bytes.fromhex(digest)
    if not TOKEN.fullmatch(text):
        raise TokenError(
            f"line {number}: no client can send its token: expected letters, digits, . _ ~ + / -"
            " and at the end ="
        )
    if len(text) < SHORTEST:
        raise TokenError(
            f"line {number}: its token has {len(text)} characters: expected {SHORTEST} or more,"
            " as from `openssl rand -hex 32`"
        )
    return hashlib.sha256(text.encode("ascii")).digest()


if TYPE_CHECKING:

    def _guard(tokens: Tokens, file: TokenFile) -> tuple[Authorize, Authorize]:
        return tokens, file
