"""Keys and tokens for tests of JWTs."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

SECRET = b"0123456789abcdef" * 4
RSA_KEY = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, Any] = {
    "RS256": RSA_KEY,
    "PS512": RSA_KEY,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
ED448 = ed448.Ed448PrivateKey.generate()
OTHER: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "PS512": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> bytes:
    """The public half."""
    found: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def signed(algorithm: str, key: Any, *, kid: str | None = None, **claims: Any) -> str:
    """A token of alice's, good for an hour, unless said otherwise; None takes a claim away."""
    given = {"sub": "alice", "exp": int(time.time()) + 3600} | claims
    found = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(found, key, algorithm, headers={"kid": kid} if kid else None)


def jwk(algorithm: str, key: Any, **fields: Any) -> dict[str, Any]:
    """A public key as it stands in a JWKS."""
    if isinstance(key, bytes):
        found: dict[str, Any] = {
            "kty": "oct",
            "k": base64.urlsafe_b64encode(key).decode().rstrip("="),
        }
    else:
        found = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
        found.pop("key_ops", None)
    return found | fields


def jwks(*keys: dict[str, Any]) -> bytes:
    """A set of keys."""
    return json.dumps({"keys": keys}).encode()
