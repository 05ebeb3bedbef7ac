"""Static bearer tokens: who is known, and what is said of a list that can't be used."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
from anyio import to_thread
from tests.auth.requests import asking, judged, status
from tests.engine.stage import until

from tidegate.auth import token
from tidegate.auth.token import TokenError, TokenFile, Tokens
from tidegate.protocol.errors import Denied
from tidegate.protocol.model import Principal

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice-0123456789abcdef", "Ym9i/MDEyMzQ1Njc4OWFiY2RlZg=="
LINES = f"""
# who may upload
alice {ALICE}
bob   sha256:{hashlib.sha256(BOB.encode()).hexdigest().upper()}
alice other-token-of-alice
"""


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (f"Bearer {ALICE}", "alice"),
        (f"bearer   {ALICE}  ", "alice"),
        ("Bearer other-token-of-alice", "alice"),
        (f"Bearer {BOB}", "bob"),
    ],
)
async def test_who_is_known(sent: str, name: str) -> None:
    assert await judged(Tokens(LINES.splitlines()), asking(sent)) == Principal(id=name)


@pytest.mark.parametrize(
    "sent",
    [
        [],
        ["Bearer"],
        ["Bearer "],
        ["Bearer unknown-0123456789"],
        [f"Bearer {ALICE}x"],
        [f"Bearer {ALICE[:-1]}"],
        [f"Bearer {ALICE} {ALICE}"],
        [f"Bearer {ALICE}, Bearer {ALICE}"],
        [f"Bearer {ALICE}", f"Bearer {BOB}"],
        [f"Basic {ALICE}"],
        [ALICE],
        ["Bearer \xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9"],
        # The digest is not the token.
        [f"Bearer {hashlib.sha256(BOB.encode()).hexdigest()}"],
        [f"Bearer sha256:{hashlib.sha256(BOB.encode()).hexdigest()}"],
    ],
)
async def test_who_is_not(sent: list[str]) -> None:
    denied = await judged(Tokens(LINES.splitlines()), asking(*sent))
    assert isinstance(denied, Denied)
    assert denied.status == 401
    ((name, challenge),) = denied.headers
    assert name == b"www-authenticate"
    assert challenge.startswith(b'Bearer realm="tidegate"')
    assert (b'error="invalid_token"' in challenge) == bool(sent)
    for text in (str(denied), repr(denied), challenge.decode()):
        assert ALICE not in text
        assert "unknown" not in text


async def test_of_the_spellings_of_tokens_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token, "REMEMBERED", 2)
    tokens = Tokens(LINES.splitlines())
    for name, known in (("alice", ALICE), ("bob", BOB)):
        for spaces in range(1, 5):
            sent = f"Bearer{' ' * spaces}{known}"
            for _ in range(2):
                assert await judged(tokens, asking(sent)) == Principal(id=name)
                assert await status(tokens, asking(sent.swapcase())) == 401
                assert await status(tokens, asking(sent, sent)) == 401
                assert 1 <= len(tokens._seen) <= 2


async def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes does not tell which one was the right one."""
    compared: list[bytes] = []

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append(known)
        return known == presented

    monkeypatch.setattr("tidegate.auth.token.hmac.compare_digest", compare)
    tokens = Tokens(LINES.splitlines())
    for sent in (ALICE, BOB, "unknown-0123456789"):
        await judged(tokens, asking(f"Bearer {sent}"))
        assert len(set(compared)) == len(compared) == 3
        compared.clear()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "there are no tokens"),
        ("# nothing", "there are no tokens"),
        (ALICE, "line 1 has 1 words"),
        (f"alice {ALICE} x", "line 1 has 3 words"),
        ("alice secret", "expected 16 or more"),
        ("alice secret-with-ünicode", "no client can send its token"),
        ("alice sha256:secret", "expected 64 hexadecimal digits"),
        (f"alice {ALICE}\nbob {ALICE}", "line 2 has the token of another line"),
        (
            f"alice {ALICE}\nbob sha256:{hashlib.sha256(ALICE.encode()).hexdigest()}",
            "line 2 has the token of another line",
        ),
        (f"a\u200bb {ALICE}", "line 1: a principal's id"),
    ],
)
def test_lists_that_cannot_be_used(lines: str, said: str) -> None:
    with pytest.raises(TokenError, match=said) as caught:
        Tokens(lines.splitlines())
    assert "secret" not in str(caught.value)
    assert ALICE not in str(caught.value)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with pytest.raises(TokenError, match="cannot be read: No such file"):
        Tokens.from_file(path)
    path.write_bytes(b"alice \xff\xff\xff\xff")
    with pytest.raises(TokenError, match="is not text in UTF-8"):
        Tokens.from_file(path)
    path.write_text(LINES)
    assert Tokens.from_file(path)(asking(f"Bearer {BOB}"), None) == Principal(id="bob")


async def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenError, match="no such variable"):
        Tokens.from_environment("UPLOAD_TOKENS")
    for value in (LINES, f"alice {ALICE}, bob {BOB}"):
        monkeypatch.setenv("UPLOAD_TOKENS", value)
        tokens = Tokens.from_environment("UPLOAD_TOKENS")
        assert await judged(tokens, asking(f"Bearer {BOB}")) == Principal(id="bob")


async def test_a_file_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Written over, replaced by another, gone, or no list any more: what can be used is."""
    monkeypatch.setattr(token, "LOOK_EVERY", 0.01)
    caplog.set_level(logging.INFO, "tidegate.auth")
    path, other = tmp_path / "tokens", tmp_path / "other"
    path.write_text(f"alice {ALICE}\n")

    async def known() -> set[str]:
        both = [await judged(tokens, asking(f"Bearer {each}")) for each in (ALICE, BOB)]
        return {each.id for each in both if isinstance(each, Principal)}

    async def comes_in(*names: str) -> bool:
        return await known() == set(names)

    async with await to_thread.run_sync(TokenFile, path) as tokens:
        assert await known() == {"alice"}
        await to_thread.run_sync(path.write_text, f"alice {ALICE}\nbob {BOB}\n")
        await until(lambda: comes_in("alice", "bob"))
        await to_thread.run_sync(other.write_text, f"bob {BOB}\n")
        await to_thread.run_sync(os.replace, other, path)
        await until(lambda: comes_in("bob"))
        for spoil, said in (
            (path.unlink, "cannot be read: No such file"),
            (lambda: path.write_text(f"alice {ALICE}\nbob secret"), "line 2: its token has 6"),
        ):
            await to_thread.run_sync(spoil)
            await until(lambda said=said: said in caplog.text)  # type: ignore[misc]
            assert await known() == {"bob"}
        await to_thread.run_sync(path.write_text, f"alice {ALICE}\n")
        await until(lambda: comes_in("alice"))
    assert caplog.text.count("still known") == 2
    for each in (ALICE, BOB, "secret"):
        assert each not in caplog.text


def test_a_file_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """Not while someone still writes it: half a list would turn the other half away."""
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\n")
    tokens = TokenFile(path)
    for half in ("bob", f"bob {BOB}", f"bob {BOB}\n"):
        path.write_text(half)
        assert tokens._look() is None
        assert tokens(asking(f"Bearer {ALICE}"), None) == Principal(id="alice")
    assert tokens._look() == Tokens([f"bob {BOB}"])._known
