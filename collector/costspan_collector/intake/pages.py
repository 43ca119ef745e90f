"""The intake for web pages: what a browser asks before it sends, and the beacons that it sends."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from costspan_collector.errors import DeniedError, RefusedError
from costspan_collector.intake.delivery import Delivery
from costspan_collector.intake.page import MEDIA_TYPE, MOST_BYTES
from costspan_collector.intake.payload import check_media_type

PATH = "/v1/page"

_METER = "pages"
_MAY_SEND = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "content-type",
    "Access-Control-Max-Age": "600",
}


def page_routes(delivery: Delivery) -> list[Route]:
    """What pages may ask.

    Args:
        delivery: What takes their beacons.
    """

    async def take(request: Request) -> Response:
        origin = _origin(request)
        with delivery.meters.answering(_METER, "http"):
            check_media_type(request.headers, (MEDIA_TYPE,))
            await run_in_threadpool(delivery.take_page, await _beacon(request), origin)
        return Response(status_code=204, headers=_readable(origin))

    def may_send(request: Request) -> Response:
        origin = _origin(request)
        if not delivery.welcomes(origin):
            raise DeniedError(403, f"pages of {origin[:100]!r} may not send here: add it to page_origins in projects.toml")
        return Response(status_code=204, headers=_readable(origin) | _MAY_SEND)

    return [Route(PATH, take, methods=["POST"]), Route(PATH, may_send, methods=["OPTIONS"])]


def _origin(request: Request) -> str:
    return request.headers.get("origin", "")


def _readable(origin: str) -> dict[str, str]:
    """Headers that let a page of another origin read the answer."""
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


async def _beacon(request: Request) -> bytes:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise RefusedError(413, f"the body is larger than the {MOST_BYTES} bytes of a page's beacon")
    except ClientDisconnect as error:
        raise RefusedError(400, "the page left before its beacon was whole") from error
    return body
