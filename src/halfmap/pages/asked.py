"""What a request asks for, read with care, and pictures as answers."""

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from halfmap.errors import InputError

BODY_SECONDS = 30.0  # in which a form has come, over any line
_FOR_A_DAY = "private, max-age=86400"


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        InputError: it is another type or cannot be read.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise InputError("JSON is expected")
    try:
        asked = json.loads(await asyncio.wait_for(request.body(), BODY_SECONDS))
    except TimeoutError:
        raise InputError("the request did not come to its end") from None
    except ValueError:
        raise InputError("JSON is expected") from None
    if not isinstance(asked, dict):
        raise InputError("a JSON object is expected")
    return asked


def values_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The options among what was asked for, by name.

    Raises:
        InputError: they are no object.
    """
    values = asked.get("values") or {}
    if not isinstance(values, dict):
        raise InputError("values: a JSON object is expected")
    return dict(values)


def number(request: Request, name: str, default: float | None) -> float | None:
    """A number of the query, `default` where there is none.

    Raises:
        InputError: no finite number.
    """
    text = request.query_params.get(name)
    if text in (None, ""):
        return default
    try:
        value = float(text or "")
    except ValueError:
        raise InputError(f"{name}: a number is expected") from None
    if not -1e30 < value < 1e30:
        raise InputError(f"{name}: a finite number is expected")
    return value


def png_answer(body: bytes) -> Response:
    """A picture that the browser may keep for a day."""
    return Response(body, media_type="image/png", headers={"cache-control": _FOR_A_DAY})


def class_of(request: Request) -> int:
    """Index of the class asked for, 0 where none was."""
    return int(number(request, "class", 1) or 1) - 1
