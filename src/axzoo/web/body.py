"""Reading the body of a request that may be too large, or never come."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES = 1 << 20
_DRAINED_BYTES = 64 << 20
"""As much of a body that is too large is read and thrown away, so that its sender gets to read the answer."""


async def read_body(request: Request, seconds: float) -> bytes:
    """The body. Raises HTTPException 408 when it comes too slowly and 413 when it is too large."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY_BYTES:
                    body += chunk
                elif size > _DRAINED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:g} s", {"Connection": "close"}) from None
    if size > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes", {"Connection": "close"})
    return bytes(body)
