"""The line that is written about every request, by whichever way it came in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.protocol.dialects.http import Request
    from tidegate.transports.service import Answer

log = logging.getLogger("tidegate.access")


def wanted() -> bool:
    """Whether anyone reads it."""
    return log.isEnabledFor(logging.INFO)


def tell(
    request: Request,
    path: str,
    answer: Answer,
    *,
    bytes_in: int,
    bytes_out: int,
    seconds: float,
    client: str | None,
) -> None:
    """Write it."""
    log.info(
        "request",
        extra={
            "tidegate": {
                "method": request.method,
                "path": path,
                "status": answer.status,
                "upload": answer.upload.id if answer.upload else None,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "seconds": round(seconds, 6),
                "client": client,
                "request_id": next(iter(request.values(b"x-request-id")), None),
            }
        },
    )
