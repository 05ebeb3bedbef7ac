"""Certificates and keys: what is said of those that don't do, and that the others work."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from tests.support.server import ServerProcess

from tidegate.cli import listen
from tidegate.cli.errors import Failure
from tidegate.config import Config


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, clean_place: Path) -> tuple[str, str]:
    """A certificate and its key, as files."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path("key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path("cert.pem", append=True)
    return "cert.pem", "key.pem"


def refused(cert: str, key: str) -> str:
    with pytest.raises(Failure) as caught:
        listen.tls_context(Config(tls_cert=cert, tls_key=key))
    return str(caught.value)


def test_a_good_pair_speaks_http_1(files: tuple[str, str]) -> None:
    assert isinstance(
        listen.tls_context(Config(tls_cert=files[0], tls_key=files[1])), ssl.SSLContext
    )


def test_what_is_wrong_with_a_pair_is_said(files: tuple[str, str], authority: trustme.CA) -> None:
    cert, key = files
    authority.issue_cert("other").private_key_pem.write_to_path("other.pem")
    Path("noise.pem").write_text("noise")
    assert refused("absent", key) == "absent: cannot be read: No such file or directory"
    assert refused(cert, "absent") == "absent: cannot be read: No such file or directory"
    assert "the key is not the one of the certificate" in refused(cert, "other.pem")
    assert "expected a certificate chain and its private key, both PEM" in refused("noise.pem", key)
    assert "expected a certificate chain and its private key, both PEM" in refused(cert, cert)


def test_a_key_with_a_password_is_refused_not_asked_for(files: tuple[str, str]) -> None:
    cert, path = files
    key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
    Path("locked.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "locked.pem: the key has a password; expected one without" in refused(cert, "locked.pem")


def test_https_is_spoken(files: tuple[str, str], authority: trustme.CA, tmp_path: Path) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    flags = ("--tls-cert", files[0], "--tls-key", files[1])
    with ServerProcess(tmp_path / "data", *flags) as server:
        assert server.url.startswith("https://127.0.0.1:")
        answer = httpx.post(
            server.url, headers={"Tus-Resumable": "1.0.0", "Upload-Length": "1"}, verify=trusting
        )
        assert answer.status_code == 201
        assert answer.headers["Location"].startswith(server.url)
        assert server.stop() == 0
