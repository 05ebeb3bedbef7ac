"""Signatures of webhooks, against what is published, and against the text of the scheme."""

from __future__ import annotations

import base64

import pytest

from tidegate.events.signing import parse_secret, sign

# The example that the libraries of Standard Webhooks are tested with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_published_example() -> None:
    assert sign([parse_secret(SECRET)], ID, TIMESTAMP, BODY) == {
        "webhook-id": ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_all_secrets_sign_the_newest_first() -> None:
    newest = parse_secret("whsec_" + base64.b64encode(b"n" * 32).decode())
    both = sign([newest, parse_secret(SECRET)], ID, TIMESTAMP, BODY)["webhook-signature"]
    alone = sign([newest], ID, TIMESTAMP, BODY)["webhook-signature"]
    assert both == f"{alone} {SIGNATURE}"
    assert alone != SIGNATURE


@pytest.mark.parametrize("size", [24, 64])
def test_secrets(size: int) -> None:
    text = "whsec_" + base64.b64encode(bytes(range(size))).decode()
    assert parse_secret(f" {text}\n") == bytes(range(size))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
        ("whsec_MfKQ9r8GKYqrTwjU PD8ILPZIo2LaLaSw", "base64, which this is not"),
        ("whsec_é", "base64, which this is not"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "this one has 23"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "this one has 65"),
    ],
)
def test_wrong_secrets_are_not_shown(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        parse_secret(text)
    assert text.removeprefix("whsec_") not in str(raised.value)
