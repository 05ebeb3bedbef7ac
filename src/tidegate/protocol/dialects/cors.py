"""Cross-origin requests of browsers (the Fetch standard, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidegate.protocol.dialects.http import Header, Request, header

ANY = "*"
MAX_AGE = 86_400
"""Seconds for which a browser may keep the answer to a preflight. Firefox's own upper bound;
Chromium's is two hours."""


class Cors(msgspec.Struct, frozen=True, kw_only=True):
    """Which pages may use the server, and what of it they may see."""

    origins: tuple[str, ...] = (ANY,)
    """Origins as a browser sends them (`https://example.org`), or `*`; empty: none."""
    methods: Sequence[str]
    request_headers: Sequence[str]
    response_headers: Sequence[str]
    max_age: int = MAX_AGE

    def headers(self, request: Request) -> list[Header]:
        """The fields to add to the response, refusals included; none for a foreign origin."""
        if not self.origins:
            return []
        anyone = ANY in self.origins
        vary = [] if anyone else [header(b"vary", "Origin")]
        origins = request.values(b"origin")
        if len(origins) != 1 or not (anyone or origins[0] in self.origins):
            return vary
        headers = [
            *vary,
            header(b"access-control-allow-origin", ANY if anyone else origins[0]),
        ]
        if is_preflight(request):
            headers += [
                header(b"access-control-allow-methods", ", ".join(self.methods)),
                header(b"access-control-allow-headers", ", ".join(self.request_headers)),
                header(b"access-control-max-age", str(self.max_age)),
            ]
        else:
            headers.append(
                header(b"access-control-expose-headers", ", ".join(self.response_headers))
            )
        return headers


def is_preflight(request: Request) -> bool:
    """Whether a browser asks if it may send another request."""
    return request.method == "OPTIONS" and bool(request.values(b"access-control-request-method"))
