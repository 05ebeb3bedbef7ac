"""`tidegate serve --auth`: who comes in, and what is said where nobody could."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.auth.signing import KEYS, pem, signed
from tests.cli.process import COMMAND, run
from tests.support.server import ServerProcess

TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
ALICE, BOB = "token-of-alice-0123456789", "token-of-bob-0123456789"


def created(server: ServerProcess, token: str | None, **more: str) -> httpx.Response:
    headers = TUS | more | ({"Authorization": f"Bearer {token}"} if token else {})
    return httpx.post(server.url, headers=headers)


def looked(url: str, token: str | None) -> int:
    headers = TUS | ({"Authorization": f"Bearer {token}"} if token else {})
    return httpx.head(url, headers=headers).status_code


@pytest.mark.parametrize("transport", ["native", "asgi"])
def test_tokens_of_a_file(tmp_path: Path, transport: str) -> None:
    tokens = tmp_path / "tokens"
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    tokens.write_text(f"alice {ALICE}\nbob sha256:{digest}\n")
    data = tmp_path / "data"
    flags = (f"--auth=token:{tokens}", f"--transport={transport}", "--workers=2")
    with ServerProcess(data, *flags) as server:
        for token in (None, "wrong-0123456789abcdef"):
            assert created(server, token).status_code == 401
        answer = created(server, ALICE)
        assert answer.status_code == 201
        url = answer.headers["Location"]
        assert looked(url, ALICE) == 200
        assert looked(url, BOB) == 404
        assert looked(url, None) == 401
        assert httpx.options(server.url).status_code == 204
        said = server.tail(1000)
    assert ALICE not in said
    assert BOB not in said
    # Without what asks for tokens alice's upload is nobody's, unless that is what is wanted.
    with ServerProcess(data) as server:
        path = url.rpartition("/")[2]
        assert looked(f"{server.url}{path}", None) == 404
    with ServerProcess(data, "--no-owners") as server:
        assert looked(f"{server.url}{path}", None) == 200
    # An operator asks nobody.
    remove = [sys.executable, "-m", "tidegate", "rm", "--yes", "--data", str(data), "--", path]
    subprocess.run(remove, check=True, timeout=30, stdout=subprocess.DEVNULL)
    with ServerProcess(data, "--no-owners") as server:
        assert looked(f"{server.url}{path}", None) == 410


def test_tokens_that_change(tmp_path: Path) -> None:
    """Each worker reads the file again: who was taken out is nobody, without a restart."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {ALICE}\n")
    with ServerProcess(tmp_path / "data", f"--auth=token:{tokens}", "--workers=2") as server:
        assert created(server, BOB).status_code == 401
        tokens.write_text(f"bob {BOB}\n")
        deadline = time.monotonic() + 30
        while server.tail(100_000).count("read again") < 2:
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.01)
        # Each time a connection of its own, to any of them.
        for _ in range(8):
            assert created(server, ALICE).status_code == 401
            assert created(server, BOB).status_code == 201
        assert ALICE not in server.tail(100_000)


def test_tokens_of_the_environment(tmp_path: Path) -> None:
    env = {"UPLOAD_TOKENS": f"alice {ALICE},bob {BOB}"}
    with ServerProcess(tmp_path / "data", "--auth=token:env:UPLOAD_TOKENS", env=env) as server:
        assert created(server, BOB).status_code == 201
        assert created(server, None).status_code == 401


def test_jwts(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(KEYS["ES256"]))
    flags = ("--jwt-audience=us", "--jwt-issuer=them", "--jwt-max-size=max", "--jwt-leeway=10s")
    with ServerProcess(tmp_path / "data", f"--auth=jwt:{tmp_path / 'key.pem'}", *flags) as server:

        def status(**claims: Any) -> int:
            return created(server, signed("ES256", KEYS["ES256"], **claims)).status_code

        assert status(aud="us", iss="them") == 201
        assert status(aud="us", iss="them", max=4) == 413
        assert status(aud="us") == 401
        assert status(aud="you", iss="them") == 401


def test_keys_and_services_that_are_down(tmp_path: Path) -> None:
    for auth in ("jwt:http://127.0.0.1:9/keys", "forward:http://127.0.0.1:9/auth"):
        with ServerProcess(tmp_path / "data", f"--auth={auth}", "--auth-timeout=2s") as server:
            answer = created(server, signed("ES256", KEYS["ES256"]))
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--auth=token:none"], "--auth token:none: cannot be read: No such file"),
        (["--auth=token:weak"], "expected 16 or more"),
        (["--auth=token:env:NONE"], "no such variable"),
        (["--auth=jwt:weak"], "expected a public key"),
        (["--auth=magic:x"], "expected token:FILE"),
        (["--jwt-issuer=x"], "--jwt-issuer needs --auth jwt:"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(
    clean_place: Path, flags: list[str], said: str
) -> None:
    (clean_place / "weak").write_text("alice hushhush\n")
    code, (line,) = run("--port", "0", *flags)
    assert code == 2
    assert said in line
    assert "hush" not in line
    assert not (clean_place / "tidegate-data").exists()


def test_a_package_that_is_not_there_is_named(clean_place: Path) -> None:
    (clean_place / "key").write_bytes(pem(KEYS["ES256"]))
    hidden = "import sys; sys.modules['jwt'] = None; from tidegate.cli import main; main()"
    code, (line,) = run("--auth=jwt:key", command=(sys.executable, "-c", hidden, COMMAND[-1]))
    assert code == 2
    assert "--auth jwt: jwt is not installed: expected tidegate[auth]" in line
