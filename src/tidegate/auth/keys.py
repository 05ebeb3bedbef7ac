"""Keys that verify JWTs: which algorithms each is for, and where they come from."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import anyio
import httpx
from anyio import to_thread
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWK, PyJWTError

from tidegate.protocol.errors import Code, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("tidegate.auth")

HMAC: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""... and the shortest secret for each: "A key of the same size as the hash output [...] or larger
MUST be used with this algorithm" (RFC 7518, 3.2)."""
RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
RSA_BITS: Final = 2048
""" "A key of size 2048 bits or larger MUST be used with these algorithms" (RFC 7518, 3.3)."""

FRESH_FOR: Final = 600.0
"""Seconds until a set of keys is fetched again: how long a key that was withdrawn still counts."""
KEEP_FOR: Final = 24 * 3600.0
"""Seconds that a set is used for when its endpoint is down: a night and a morning to mend it in."""
FETCH_EVERY: Final = 10.0
"""Seconds between two fetches, whatever tokens name: who makes up key ids must not make us ask."""
FETCH_WITHIN: Final = 4.0
"""Seconds: less than `authorize` has."""
LARGEST_SET: Final = 1024 * 1024


class BadKeyError(ValueError):
    """A key that can't be used, in words for the operator."""


class Key(NamedTuple):
    """A key, and the algorithms that it is for: never what a token says of itself."""

    key: Any
    algorithms: tuple[str, ...]
    id: str | None = None


class Keys(Protocol):
    """Where keys come from."""

    async def find(self, key_id: str | None) -> Sequence[Key]:
        """Those that may have signed a token with this key id. Raises Refusal: not to be told."""

    async def __aenter__(self) -> Self:
        """Acquire what is needed."""

    async def __aexit__(self, *_: object) -> None:
        """Let go of it."""


class FixedKeys:
    """Keys of a file, which stay."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = keys

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """A public key or certificate (PEM), a set of keys (JWKS), or a shared secret; blocks.

        Raises BadKeyError.
        """
        try:
            content = Path(path).read_bytes().strip()
        except OSError as error:
            raise BadKeyError(f"cannot be read: {error.strerror}") from None
        if content.startswith(b"-----BEGIN"):
            return cls([pem_key(content)])
        if content.startswith(b"{"):
            return cls(key_set(content, secrets=True))
        if not (allowed := _for_secret(content)):
            raise BadKeyError(
                f"has {len(content)} bytes: expected a public key (PEM), a set of keys (JWKS), or a"
                f" shared secret of {HMAC['HS256']} bytes or more"
            )
        return cls([Key(content, allowed)])

    async def find(self, key_id: str | None) -> Sequence[Key]:
        """See Keys."""
        return matching(self._keys, key_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing was acquired."""


class FetchedKeys:
    """The keys at a URL (JWKS), fetched when they are needed, kept, and fetched again.

    One request fetches, the others go on with what there is. While the endpoint is down what was
    fetched is used for KEEP_FOR, then tokens are answered with 503.
    """

    def __init__(self, url: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._now = now
        self._keys: Sequence[Key] = ()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._down = False
        self._lock = anyio.Lock()
        self._client: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        # In a thread: it reads certificates.
        self._client = await to_thread.run_sync(lambda: httpx.AsyncClient(timeout=FETCH_WITHIN))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def find(self, key_id: str | None) -> Sequence[Key]:
        """See Keys. Raises Refusal (unavailable) when they can't be had, and none is good still."""
        age = self._age()
        if age is None or age >= FRESH_FOR:
            # With something to go on with nobody waits but the one who fetches.
            await self._fetch(wait=age is None or age >= KEEP_FOR)
        found = matching(self._usable(), key_id)
        if not found:
            # "Rotated": a key that came since.
            await self._fetch(wait=True)
            found = matching(self._usable(), key_id)
        if not found and self._down:
            raise _unavailable()
        return found

    def _age(self) -> float | None:
        return None if self._fetched_at is None else self._now() - self._fetched_at

    def _usable(self) -> Sequence[Key]:
        age = self._age()
        if age is None or age >= KEEP_FOR:
            raise _unavailable()
        return self._keys

    async def _fetch(self, *, wait: bool) -> None:
        """Fetch, unless that was tried a moment ago, or someone is at it and we need not `wait`."""
        if self._lock.locked() and not wait:
            return
        async with self._lock:
            if self._tried_at is not None and self._now() - self._tried_at < FETCH_EVERY:
                return
            self._tried_at = self._now()
            try:
                with anyio.fail_after(FETCH_WITHIN):
                    content = await self._get()
                self._keys = key_set(content, secrets=False)
            except (httpx.HTTPError, TimeoutError, BadKeyError) as error:
                self._down = True
                log.warning("keys at %s: not fetched: %s", self._url, _why(error))
                return
            self._down = False
            self._fetched_at = self._now()

    async def _get(self) -> bytes:
        async with self._client.stream("GET", self._url) as response:
            if response.status_code != 200:
                raise BadKeyError(f"the answer has the status {response.status_code}")
            content = b""
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > LARGEST_SET:
                    raise BadKeyError(f"the answer has more than {LARGEST_SET} bytes")
            return content


def matching(keys: Sequence[Key], key_id: str | None) -> list[Key]:
    """The keys that may have signed a token: those of its key id, or without one."""
    if key_id is None:
        return list(keys)
    return [key for key in keys if key.id in (key_id, None)]


def pem_key(content: bytes) -> Key:
    """A public key, alone or in a certificate. Raises BadKeyError."""
    try:
        if b"-----BEGIN CERTIFICATE-----" in content:
            key: Any = load_pem_x509_certificate(content).public_key()
        else:
            key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise BadKeyError(
            "has no public key in it: expected BEGIN PUBLIC KEY or CERTIFICATE"
        ) from None
    return Key(key, _algorithms(key))


def _algorithms(key: object) -> tuple[str, ...]:
    """What a public key is for, by its kind alone. Raises BadKeyError."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise BadKeyError(f"is an RSA key of {key.key_size} bits: expected {RSA_BITS} or more")
        return RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return (CURVES[key.curve.name],)
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return ("EdDSA",)
    raise BadKeyError(
        "is a key of another kind: expected RSA, P-256, P-384, P-521, Ed25519 or Ed448"
    )


def _for_secret(secret: bytes) -> tuple[str, ...]:
    """What a shared secret is for, by its length; nothing, when it is too short."""
    return tuple(name for name, least in HMAC.items() if len(secret) >= least)


def key_set(content: bytes, *, secrets: bool) -> list[Key]:
    """The keys of a JWKS (RFC 7517) that verify signatures; others are passed over.

    Shared secrets only with `secrets`: what anyone can fetch is none. Raises BadKeyError.
    """
    try:
        found = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list):
        raise BadKeyError('is no set of keys: expected a JSON object with "keys"')
    keys = [key for item in found if (key := _from_jwk(item, secrets=secrets)) is not None]
    if not keys:
        raise BadKeyError("has no key that verifies signatures")
    return keys


def _from_jwk(item: object, *, secrets: bool) -> Key | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    if "verify" not in item.get("key_ops", ["verify"]):
        return None
    key_id = item.get("kid")
    try:
        if item.get("kty") == "oct":
            key = PyJWK(item, "HS256").key
            allowed = _for_secret(key) if secrets else ()
        else:
            key = PyJWK({**item, "alg": _any_algorithm(item)}).key
            key = getattr(key, "public_key", lambda: key)() if "d" in item else key
            allowed = _algorithms(key)
    except (PyJWTError, BadKeyError, ValueError, TypeError, KeyError):
        # A kind of key that comes after us.
        return None
    if (wanted := item.get("alg")) is not None:
        allowed = tuple(name for name in allowed if name == wanted)
    return Key(key, allowed, key_id if isinstance(key_id, str) else None) if allowed else None


def _any_algorithm(item: dict[str, Any]) -> str:
    """One that PyJWT reads such a key for; which it is used for is ours to say."""
    if item.get("kty") == "RSA":
        return "RS256"
    if item.get("kty") == "OKP":
        return "EdDSA"
    curves = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
    return curves[item["crv"]]


def _why(error: Exception) -> str:
    """What went wrong, in words; of httpx's own only the kind, since they may repeat what we sent."""
    return str(error) if isinstance(error, BadKeyError) else type(error).__name__


def _unavailable() -> Refusal:
    return Refusal(
        Code.UNAVAILABLE, "the keys that verify tokens cannot be reached; try again", retry_after=5
    )
