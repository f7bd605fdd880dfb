# SPDX-License-Identifier: GPL-3.0-or-later
"""Our routes: how the server is protected, a check of pictures, and a page's own last result.

Routes that are added when the app starts inherit none of the host's logins, so they ask for the
same credentials themselves: those of `--api-auth`, those of `--gradio-auth`, or the page's cookie.
What belongs to a page asks for the page's login and for its secret, which it sent with the request:
the names of tasks are no secret, the host lists those that wait.
"""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from safegen_core import __version__
from safegen_core.errors import FileError, PictureError, SafeGenError
from safegen_core.header import printable
from safegen_core.strict_json import parse_object

from . import checking, jobs, last_batch, patches, settings, weights, wraps
from .protection import Protection, joined

MOST_BYTES = 64 << 20
"""Of a request."""
MOST_PICTURES = 16
MOST_PIXELS = 64_000_000
"""Of all pictures of a request together."""
MOST_A_MINUTE = 120
"""Requests that judge pictures, from everybody together."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Of pictures that are sent."""

_Work = Callable[[dict[str, Any]], Any]

_one_at_a_time = threading.Lock()
_lately: deque[float] = deque()


def add_routes(app: Any) -> None:
    """Put our routes on the host's app.

    Args:
        app: its FastAPI app, which Gradio made.
    """
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from starlette.concurrency import run_in_threadpool

    async def answer(request: Request, work: _Work, *, of_page: bool = False) -> Any:
        if not _may(request, app, of_page):
            # a page that asks in the background must not make the browser ask for a password
            headers = {} if of_page else {"WWW-Authenticate": "Basic"}
            told = {"error": "auth", "detail": "Incorrect username or password"}
            return JSONResponse(told, 401, headers)
        try:
            given = await _object(request)
            return JSONResponse(await run_in_threadpool(work, given))
        except _Refused as error:
            return JSONResponse({"error": error.code, "detail": str(error)}, error.status)
        except SafeGenError as error:
            return JSONResponse({"error": error.code, "detail": error.message}, 422)

    async def status(request: Request) -> Any:
        return await answer(request, lambda given: _status())

    async def job(request: Request) -> Any:
        return await answer(request, _job, of_page=True)

    async def check(request: Request) -> Any:
        return await answer(request, _check)

    async def recheck(request: Request) -> Any:
        return await answer(request, _recheck, of_page=True)

    for function in (status, job, check, recheck):
        # annotations are strings here, and FastAPI would look for `Request` in this module
        function.__annotations__ = {"request": Request}
    app.add_api_route("/safegen/status", status, methods=["GET"])
    app.add_api_route("/safegen/job", job, methods=["POST"])
    app.add_api_route("/safegen/check", check, methods=["POST"])
    app.add_api_route("/safegen/recheck", recheck, methods=["POST"])


class _Refused(Exception):
    """A request that makes no sense, or is beyond our limits."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status, self.code = status, "request" if status == 422 else "limit"


def _status() -> dict[str, Any]:
    """How this server is protected; nothing of anybody's prompts or pictures."""
    policy, ready, why = None, True, ""
    try:
        policy = settings.server()
        checking.ready(settings.standing())
    except SafeGenError as error:
        ready, why = False, error.message
    last = jobs.last()
    return {
        "safegen": __version__,
        "host": _host(),
        "server_policy": policy and {"name": policy.name, "id": policy.id},
        "check": {"ready": ready, "why": why},
        "models": weights.status(),
        "patches": patches.names(),
        "wraps": [
            {"target": one.target, "installed": one.installed, "outermost": one.outermost}
            for one in wraps.states()
        ],
        "last": last and _told(last),
    }


def _host() -> dict[str, str]:
    import platform

    import gradio
    import torch
    from modules import launch_utils

    return {
        "version": str(launch_utils.git_tag()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradio": gradio.__version__,
    }


def _job(given: dict[str, Any]) -> dict[str, Any]:
    """What became of a request, for the page that sent it; only here are its prompts told."""
    _known(given, ("task", "page"))
    job = jobs.of_task(_text(given, "task"), _text(given, "page"))
    if job is None:
        return {"known": False}
    return {
        "known": True,
        "host": _host(),
        **_told(job),
        "refused": job.refused,
        "prompts": [explanation.json() for explanation in [*job.prompts.values()]],
        "recheck": settings.image_choices()[1:] if last_batch.of(job) else [],
    }


def _told(job: jobs.Job) -> dict[str, Any]:
    """A request's result; nothing of its prompts."""
    asked = job.protection
    return {
        "safegen": __version__,
        "running": jobs.current() is job,
        "asked": {"patch": asked.patch, "prompts": asked.prompts, "action": asked.action},
        "policies": [{"name": one.name, "id": one.short_id} for one in asked.images],
        "pictures": [verdict.to_values() for verdict in job.verdicts],
        "patch": dict(job.patch),
        "notes": [*job.notes],
    }


def _check(given: dict[str, Any]) -> dict[str, Any]:
    """Judge pictures under the server's policy, or under one that is asked for besides."""
    _known(given, ("images", "policy", "render"))
    protection = settings.standing()
    if "policy" in given:
        asked = (patches.open_policy(_text(given, "policy")),)
        protection = joined(Protection(images=asked), settings.server())
    if not protection.images:
        raise FileError(
            "file_missing", "No image check is chosen in the settings; name a policy to judge by."
        )
    pictures = _pictures(given.get("images"))
    return _judged(pictures, protection, render=given.get("render") is True)


def _recheck(given: dict[str, Any]) -> dict[str, Any]:
    """The last pictures of a page under another policy, without making them again."""
    _known(given, ("task", "page", "policy"))
    job = jobs.of_task(_text(given, "task"), _text(given, "page"))
    pictures = [] if job is None else last_batch.of(job)
    if not pictures:
        raise FileError("file_missing", "These pictures are not kept any more; generate again.")
    asked = (patches.open_policy(_text(given, "policy")),)
    return _judged(pictures, joined(Protection(images=asked), settings.server()), render=True)


def _judged(pictures: list[Any], protection: Protection, *, render: bool) -> dict[str, Any]:
    now = time.monotonic()
    with _one_at_a_time:
        while _lately and now - _lately[0] > 60:
            _lately.popleft()
        if len(_lately) >= MOST_A_MINUTE:
            raise _Refused(429, f"More than {MOST_A_MINUTE} checks a minute; try again later.")
        _lately.append(now)
        checking.ready(protection)
        outcomes = checking.judged(pictures, protection)
    found = []
    for outcome in outcomes:
        one = {"verdicts": [verdict.to_values() for verdict in outcome.verdicts]}
        if render:
            one["image"] = _encoded(outcome.shown)
        found.append(one)
    return {
        "safegen": __version__,
        "policies": [{"name": one.name, "id": one.short_id} for one in protection.images],
        "pictures": found,
    }


def _pictures(given: Any) -> list[Any]:
    if not isinstance(given, list) or not 0 < len(given) <= MOST_PICTURES:
        raise PictureError(
            "picture_batch", f"images must be a list of 1 to {MOST_PICTURES} pictures in base64."
        )
    found, pixels = [], 0
    for number, text in enumerate(given, 1):
        picture = _decoded(text, number)
        pixels += picture.width * picture.height
        if pixels > MOST_PIXELS:
            raise _Refused(413, f"The pictures have more than {MOST_PIXELS} pixels together.")
        found.append(picture)
    return found


def _decoded(text: Any, number: int) -> Any:
    """A picture that is not unpacked yet: its size is told by its header."""
    from PIL import Image

    try:
        if not isinstance(text, str):
            raise ValueError("it is no text")
        content = base64.b64decode(text.partition(",")[2] if text[:5] == "data:" else text)
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if getattr(picture, "is_animated", False):
            raise ValueError("it moves")
        return picture
    except Image.UnidentifiedImageError:
        raise PictureError(
            "picture_unreadable", f"Picture {number} is of none of {', '.join(FORMATS)}."
        ) from None
    except (ValueError, OSError, binascii.Error, Image.DecompressionBombError) as error:
        raise PictureError(
            "picture_unreadable", f"Picture {number} cannot be read: {printable(error)}."
        ) from None


def _encoded(picture: Any) -> str:
    """A PNG without anybody's parameters."""
    content = io.BytesIO()
    bare = picture.copy() if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGBA")
    bare.info = {}
    bare.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


async def _object(request: Any) -> dict[str, Any]:
    """The JSON object of a request; {} of one without a body."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise _Refused(413, f"The request has more than {MOST_BYTES} bytes.")
    if not body:
        return {}
    try:
        return parse_object(body.decode("utf-8"))
    except ValueError as error:
        raise _Refused(422, f"The request is no JSON object: {printable(error)}.") from None


def _known(given: dict[str, Any], names: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise _Refused(422, f"{printable(repr(unknown[0]))} is unknown; known: {', '.join(names)}.")


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 300:
        raise _Refused(422, f"{name} must be a text.")
    return value


def _may(request: Any, app: Any, of_page: bool) -> bool:
    """Whether whoever asks has logged in, where the host wants that."""
    known = _of_page() if of_page else [*_of_page(), *_of_api()]
    if not known:
        return True
    tokens = getattr(app, "tokens", None) or {}
    if any(cookie in tokens for cookie in request.cookies.values()):  # of the page's own login
        return True
    given = _basic(request.headers.get("authorization", ""))
    # every one is compared, so that the time tells nothing
    return any([secrets.compare_digest(given, one) for one in known])


def _of_api() -> list[bytes]:
    """Name and password, with a colon between, of everybody who may use the API."""
    from modules import shared

    return _listed(getattr(shared.cmd_opts, "api_auth", None))


def _of_page() -> list[bytes]:
    """Likewise of everybody who may see the page."""
    from modules import shared

    try:
        from modules.initialize_util import get_gradio_auth_creds
    except ImportError:  # its flag still tells that there are any
        return _listed(getattr(shared.cmd_opts, "gradio_auth", None))
    return [":".join(one).encode() for one in get_gradio_auth_creds()]


def _listed(flag: Any) -> list[bytes]:
    return [one.strip().encode() for one in str(flag or "").split(",") if one.strip()]


def _basic(header: str) -> bytes:
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded)
    except (ValueError, binascii.Error):
        return b""
