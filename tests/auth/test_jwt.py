"""JWTs: what a token must be, and that nothing it says of itself is believed."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.auth.requests import asking, judged, status
from tests.auth.signing import ED448, KEYS, OTHER, SECRET, jwk, jwks, pem, signed

from tidegate.auth.jwt import Claims, Tokens
from tidegate.auth.keys import HMAC, BadKeyError, FixedKeys, Key, key_set, pem_key
from tidegate.protocol.errors import Denied
from tidegate.protocol.model import Principal

pytestmark = pytest.mark.anyio


def keys_of(*contents: bytes | dict[str, Any]) -> FixedKeys:
    found: list[Key] = []
    for content in contents:
        if isinstance(content, dict):
            found += key_set(jwks(content), secrets=True)
        elif content.startswith(b"-----"):
            found.append(pem_key(content))
        else:
            found.append(Key(content, tuple(HMAC)))
    return FixedKeys(found)


def bearer(token: str) -> Any:
    return asking(f"Bearer {token}")


@pytest.mark.parametrize("algorithm", KEYS)
async def test_public_keys(algorithm: str) -> None:
    key = KEYS[algorithm]
    for keys in (
        keys_of(pem(key)),
        keys_of(jwk(algorithm, key)),
        keys_of(jwk(algorithm, key, alg=algorithm)),
    ):
        tokens = Tokens(keys)
        found = await judged(tokens, bearer(signed(algorithm, key)))
        assert isinstance(found, Principal)
        assert (found.id, found.max_size, found.claims["sub"]) == ("alice", None, "alice")
        assert await status(tokens, bearer(signed(algorithm, OTHER[algorithm]))) == 401


async def test_ed448() -> None:
    assert await status(Tokens(keys_of(pem(ED448))), bearer(signed("EdDSA", ED448))) == 200


@pytest.mark.parametrize("algorithm", HMAC)
async def test_shared_secrets(algorithm: str) -> None:
    for keys in (keys_of(SECRET), keys_of(jwk(algorithm, SECRET))):
        tokens = Tokens(keys)
        assert await status(tokens, bearer(signed(algorithm, SECRET))) == 200
        assert await status(tokens, bearer(signed(algorithm, SECRET[::-1]))) == 401


def _forged(head: dict[str, Any], signature: bytes = b"") -> str:
    claims = {"sub": "alice", "exp": int(time.time()) + 60}
    parts = [json.dumps(part).encode() for part in (head, claims)] + [signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def _hmac_of(secret: bytes, algorithm: str = "HS256") -> str:
    """A token whose secret is a public key: PyJWT itself would not make one."""
    import hashlib
    import hmac

    unsigned = _forged({"alg": algorithm, "typ": "JWT"}).rpartition(".")[0]
    digest = hmac.digest(secret, unsigned.encode(), hashlib.sha256)
    return f"{unsigned}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_algorithms_are_the_keys_and_not_the_tokens(algorithm: str) -> None:
    public = pem(KEYS[algorithm])
    tokens = Tokens(keys_of(public, jwk(algorithm, KEYS[algorithm], kid="one")))
    for secret in (public, public.strip(), public + b"\n", b""):
        assert await status(tokens, bearer(_hmac_of(secret))) == 401
    for alg in ("none", "None", "NONE", "", "HS256", "RS1", None, 5, ["RS256"]):
        assert await status(tokens, bearer(_forged({"alg": alg}))) == 401
        assert await status(tokens, bearer(_forged({"alg": alg, "kid": "one"}))) == 401
    for other in set(KEYS) - {algorithm, "PS512" if algorithm == "RS256" else ""}:
        assert await status(tokens, bearer(signed(other, KEYS[other]))) == 401


async def test_a_key_is_for_what_its_set_says() -> None:
    key = KEYS["RS256"]
    tokens = Tokens(keys_of(jwk("RS256", key, alg="PS512")))
    assert await status(tokens, bearer(signed("RS256", key))) == 401
    assert await status(tokens, bearer(signed("PS512", key))) == 200


async def test_a_key_in_the_token_is_nobodys() -> None:
    """ "jwk", "jku" and "x5c" in a head are the forger's own."""
    forger = OTHER["RS256"]
    token = jwt.encode(
        {"sub": "alice", "exp": int(time.time()) + 60},
        forger,
        "RS256",
        headers={"jwk": jwk("RS256", forger), "jku": "http://127.0.0.1:9/keys"},
    )
    assert await status(Tokens(keys_of(pem(KEYS["RS256"]))), bearer(token)) == 401


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "expected", "said"),
    [
        ({}, Claims(), None),
        ({"exp": NOW - 10}, Claims(), "it has expired"),
        ({"exp": NOW - 10}, Claims(leeway=600), None),
        ({"exp": None}, Claims(), "it lacks the claim exp"),
        ({"exp": "soon"}, Claims(), "it is not valid"),
        ({"nbf": NOW + 600}, Claims(), "it is not valid yet"),
        ({"iat": NOW + 600}, Claims(), "it is not valid yet"),
        ({"nbf": NOW + 300}, Claims(leeway=600), None),
        ({"iss": "us"}, Claims(issuer="us"), None),
        ({"iss": "them"}, Claims(issuer="us"), "it is from another issuer"),
        ({}, Claims(issuer="us"), "it lacks the claim iss"),
        ({"aud": "us"}, Claims(audience=("us",)), None),
        ({"aud": ["them", "us"]}, Claims(audience=("us", "x")), None),
        ({"aud": "them"}, Claims(audience=("us",)), "it is for another audience"),
        ({}, Claims(audience=("us",)), "it lacks the claim aud"),
        ({"aud": "them"}, Claims(), "it is for another audience"),
        ({}, Claims(required=("tenant",)), "it lacks the claim tenant"),
        ({"tenant": "x"}, Claims(required=("tenant",)), None),
        ({"sub": None}, Claims(), "its sub names nobody"),
        ({"sub": ""}, Claims(), "its sub names nobody"),
        ({"sub": "a\nb"}, Claims(), "its sub names nobody"),
        ({"email": ["a"]}, Claims(principal="email"), "its email names nobody"),
        ({"max": "5"}, Claims(max_size="max"), "its max is not a number of bytes"),
        ({"max": -1}, Claims(max_size="max"), "its max is not a number of bytes"),
        ({"max": True}, Claims(max_size="max"), "its max is not a number of bytes"),
        ({"max": 5.0}, Claims(max_size="max"), "its max is not a number of bytes"),
        ({"max": 2**63}, Claims(max_size="max"), "its max is not a number of bytes"),
    ],
)
async def test_claims(claims: dict[str, Any], expected: Claims, said: str | None) -> None:
    tokens = Tokens(keys_of(SECRET), expected)
    answer = await judged(tokens, bearer(signed("HS256", SECRET, **claims)))
    if said is None:
        assert isinstance(answer, Principal)
        return
    assert isinstance(answer, Denied)
    assert answer.status == 401
    assert answer.message.endswith(said)
    assert f'error_description="{said}"'.encode() in dict(answer.headers)[b"www-authenticate"]


async def test_what_claims_say_of_a_principal() -> None:
    tokens = Tokens(keys_of(SECRET), Claims(principal="email", max_size="max"))
    token = signed("HS256", SECRET, sub=None, email="a@b", max=5)
    found = await judged(tokens, bearer(token))
    assert isinstance(found, Principal)
    assert (found.id, found.max_size, found.claims["email"]) == ("a@b", 5, "a@b")
    without = await judged(tokens, bearer(signed("HS256", SECRET, email="a@b")))
    assert isinstance(without, Principal)
    assert without.max_size is None


@pytest.mark.parametrize(
    "token", ["x", "a.b.c", "..", "e30.e30.e30", "eyJhbGciOjV9.e30.", "eyJraWQiOjV9.e30.", "%%%"]
)
async def test_what_is_no_jwt(token: str) -> None:
    answer = await judged(Tokens(keys_of(SECRET)), bearer(token))
    assert isinstance(answer, Denied)
    assert answer.status == 401
    assert len(token) < 4 or token not in str(answer) + str(answer.headers)


async def test_a_signature_that_was_tampered_with() -> None:
    head, claims, signature = signed("HS256", SECRET).split(".")
    other = signed("HS256", SECRET, sub="root").split(".")[1]
    tokens = Tokens(keys_of(SECRET))
    assert await status(tokens, bearer(f"{head}.{other}.{signature}")) == 401
    assert await status(tokens, bearer(f"{head}.{claims}.")) == 401


async def test_several_keys() -> None:
    """Those of the token's key id, and those without one; without an id, all."""
    first, second, third = KEYS["RS256"], OTHER["RS256"], OTHER["PS512"]
    tokens = Tokens(
        keys_of(
            jwk("RS256", first, kid="one"), jwk("RS256", second, kid="two"), jwk("RS256", third)
        )
    )
    for key, kid, expected in [
        (first, "one", 200),
        (second, "one", 401),
        (first, "three", 401),
        (third, "three", 200),
        (first, None, 200),
        (third, None, 200),
    ]:
        assert await status(tokens, bearer(signed("RS256", key, kid=kid))) == expected, kid


# ------------------------------------------------------------------------------------ key files


def _certificate(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tus.test")])
    import datetime

    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(day).not_valid_after(day + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("content", "algorithm", "key"),
    [
        (SECRET + b"\n", "HS512", SECRET),
        (b"\n" + pem(KEYS["ES256"]), "ES256", KEYS["ES256"]),
        (_certificate(KEYS["RS256"]), "RS256", KEYS["RS256"]),
        (jwks(jwk("EdDSA", KEYS["EdDSA"])), "EdDSA", KEYS["EdDSA"]),
        (jwks(jwk("HS256", SECRET)), "HS256", SECRET),
    ],
    ids=["secret", "public key", "certificate", "set", "set of secrets"],
)
async def test_files(tmp_path: Path, content: bytes, algorithm: str, key: Any) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    async with Tokens(await asyncio.to_thread(FixedKeys.from_file, path)) as tokens:
        assert await status(tokens, bearer(signed(algorithm, key))) == 200


SMALL_RSA = rsa.generate_private_key(65537, 1024)
K1 = ec.generate_private_key(ec.SECP256K1())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "has 0 bytes: expected a public key"),
        (b"x" * 31, "has 31 bytes: expected a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----", "no public key in it"),
        (b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "no public key in it"),
        (pem(SMALL_RSA), "RSA key of 1024 bits"),
        (pem(K1), "a key of another kind"),
        (b"{}", "no set of keys"),
        (b"{", "no set of keys"),
        (b'{"keys": 5}', "no set of keys"),
        (jwks(), "no key that verifies signatures"),
        (jwks(jwk("RS256", KEYS["RS256"], use="enc")), "no key that verifies"),
        (jwks(jwk("RS256", KEYS["RS256"], key_ops=["sign"])), "no key that verifies"),
        (jwks(jwk("RS256", KEYS["RS256"], alg="HS256")), "no key that verifies"),
        (jwks(jwk("RS256", SMALL_RSA)), "no key that verifies"),
        (jwks(jwk("HS256", SECRET[:31])), "no key that verifies"),
        (b'{"keys": [5, {}, {"kty": "new"}, {"kty": "EC", "crv": "x"}, {"kty": "RSA"}]}', "no key"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadKeyError, match=said):
        FixedKeys.from_file(path)


def test_a_short_secret_is_for_short_digests() -> None:
    for size, allowed in ((32, ("HS256",)), (48, ("HS256", "HS384")), (64, tuple(HMAC))):
        (key,) = key_set(jwks(jwk("HS256", SECRET[:size])), secrets=True)
        assert key.algorithms == allowed


def test_a_secret_that_anyone_can_fetch_is_none() -> None:
    with pytest.raises(BadKeyError):
        key_set(jwks(jwk("HS256", SECRET)), secrets=False)
