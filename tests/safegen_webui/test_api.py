# SPDX-License-Identifier: GPL-3.0-or-later
"""Our routes: the host's credentials, limits, and prompts for nobody but their page."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import types

import pytest

pytest.importorskip("torch")

from safegen_core.sanitize.explanation import Explanation, Shown
from safegen_webui import api, jobs, last_batch, settings


class Request:
    """Starlette's: what of it we read."""

    def __init__(self, body, headers, cookies):
        self._body, self.headers, self.cookies = body, headers, cookies

    async def stream(self):
        for start in range(0, len(self._body), 1000):
            yield self._body[start : start + 1000]


class Answer:
    def __init__(self, content, status_code=200, headers=None):
        self.status, self.headers = status_code, headers or {}
        self.content = json.loads(json.dumps(content, allow_nan=False))


class App:
    def __init__(self):
        self.routes, self.tokens = {}, {"a-cookie": "somebody"}

    def add_api_route(self, path, function, methods):
        self.routes[methods[0], path] = function

    def ask(self, method, path, body=None, login=None, cookie=None):
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        content = content.encode() if isinstance(content, str) else content
        headers = {}
        if login is not None:
            headers["authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        cookies = {"access-token": cookie} if cookie else {}
        return asyncio.run(self.routes[method, path](Request(content, headers, cookies)))


@pytest.fixture
def app(webui, reds, monkeypatch):
    """The host's app with our routes; policies "strict" and "default" find red squares."""

    async def run_in_threadpool(function, *arguments):
        return function(*arguments)

    for name, names in {
        "fastapi": {"Request": Request},
        "fastapi.responses": {"JSONResponse": Answer},
        "starlette": {},
        "starlette.concurrency": {"run_in_threadpool": run_in_threadpool},
        "gradio": {"__version__": "0"},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    policies = {"strict": reds.policy("withhold"), "default": reds.policy()}
    monkeypatch.setattr(settings.patches, "open_policy", policies.__getitem__)
    monkeypatch.setattr(settings.patches, "policy_names", lambda: ["art", "default", "strict"])
    monkeypatch.setattr(settings, "server_file", lambda: None)
    monkeypatch.setattr(settings, "server", lambda: None)
    monkeypatch.setattr(api, "_lately", type(api._lately)())
    app = App()
    app.flags = webui("shared").cmd_opts
    api.add_routes(app)
    return app


def sent(picture, kind="PNG", **how):
    file = io.BytesIO()
    picture.save(file, format=kind, **how)
    return base64.b64encode(file.getvalue()).decode()


def received(text):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(text)))


EVERYWHERE = [("GET", "/safegen/status"), ("POST", "/safegen/check")]
OF_PAGES = [("POST", "/safegen/job"), ("POST", "/safegen/recheck")]


@pytest.mark.parametrize("route", EVERYWHERE)
@pytest.mark.parametrize("flag", ["api_auth", "gradio_auth"])
def test_either_login_of_the_host_is_asked_for(app, route, flag):
    setattr(app.flags, flag, "somebody:pass:word, other:p")
    for login in (None, "somebody:pass", "other:q", ":", ""):
        answer = app.ask(*route, login=login)
        assert answer.status == 401
        assert answer.headers == {"WWW-Authenticate": "Basic"}
    for login in ("somebody:pass:word", "other:p"):
        assert app.ask(*route, login=login).status != 401
    assert app.ask(*route, cookie="a-cookie").status != 401
    assert app.ask(*route, cookie="another").status == 401


@pytest.mark.parametrize("route", OF_PAGES)
def test_a_page_has_its_own_login_and_no_window_opens(app, route):
    app.flags.api_auth = "api:p"
    assert app.ask(*route).status == 422
    app.flags.gradio_auth = "somebody:p"
    for login in (None, "api:p"):
        answer = app.ask(*route, login=login)
        assert (answer.status, answer.headers) == (401, {})
    assert app.ask(*route, cookie="a-cookie").status == 422


def finished(app, reds, page="secret", task="task(a)"):
    """A job that is over, of one red square."""
    word = Shown("zebrine", 1, 0.1, None, "keep", None, 0)
    explanation = Explanation("pass", 0.5, 1, 0.1, None, (word,), (), 0, "Nothing found.")
    with jobs.begun(reds.protection(), task, page) as job:
        job.prompts["zebrine"] = explanation
        last_batch.keep(reds.picture("red"))
        api.checking.gate(reds.picture("red"))
        job.refused = "a sentence with zebrine"
    return job


def test_only_its_page_sees_a_request(app, reds):
    finished(app, reds)
    answer = app.ask("POST", "/safegen/job", {"task": "task(a)", "page": "secret"})
    told = answer.content
    assert (told["known"], told["running"]) == (True, False)
    assert [one["action"] for one in told["pictures"]] == ["censor"]
    assert told["prompts"][0]["words"][0]["text"] == "zebrine"
    assert told["recheck"] == ["art", "default", "strict"]
    for task, page in (("task(a)", "other"), ("task(b)", "secret")):
        answer = app.ask("POST", "/safegen/job", {"task": task, "page": page})
        assert answer.content == {"known": False}


def test_the_status_tells_of_no_prompt(app, reds):
    finished(app, reds)
    status = app.ask("GET", "/safegen/status")
    assert status.status == 200
    assert status.content["last"]["pictures"]
    assert "zebrine" not in json.dumps(status.content)
    assert "secret" not in json.dumps(status.content)


def test_the_status_says_why_nothing_works(app, reds, monkeypatch):
    from safegen_core.errors import PolicyError

    def fails():
        raise PolicyError("policy_unreadable", "The policy is broken.")

    monkeypatch.setattr(settings, "server", fails)
    status = app.ask("GET", "/safegen/status")
    assert status.content["check"] == {"ready": False, "why": "The policy is broken."}


def test_pictures_are_tried_under_another_preset(app, reds):
    finished(app, reds)
    wanted = {"task": "task(a)", "page": "secret", "policy": "strict"}
    picture = app.ask("POST", "/safegen/recheck", wanted).content["pictures"][0]
    assert picture["verdicts"][0]["action"] == "withhold"
    assert not reds.shows(received(picture["image"]))
    assert app.ask("POST", "/safegen/recheck", wanted | {"page": "other"}).status == 422


def test_where_a_server_has_a_policy_nothing_is_tried(app, reds, monkeypatch, tmp_path):
    finished(app, reds)
    monkeypatch.setattr(settings, "server_file", lambda: tmp_path)
    wanted = {"task": "task(a)", "page": "secret", "policy": "default"}
    assert app.ask("POST", "/safegen/recheck", wanted).status == 422


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA"])
def test_sent_pictures_are_judged_and_rendered(app, reds, mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    images = [sent(reds.picture(mode=mode), kind), "data:image/png;base64," + sent(reds.picture())]
    wanted = {"images": images, "policy": "default", "render": True}
    told = app.ask("POST", "/safegen/check", wanted)
    assert [one["verdicts"][0]["action"] for one in told.content["pictures"]] == ["release"] * 2
    assert received(told.content["pictures"][0]["image"]).size == (32, 24)


def test_a_rendered_picture_hides_what_was_found_and_tells_nothing(app, reds):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "zebrine")
    for squares in (["red"], []):
        image = sent(reds.picture(*squares), pnginfo=info)
        wanted = {"images": [image], "policy": "default", "render": True}
        told = app.ask("POST", "/safegen/check", wanted).content["pictures"][0]
        assert not reds.shows(received(told["image"]))
        assert "zebrine" not in str(received(told["image"]).info)


def test_a_policy_that_is_asked_for_is_added_to_the_servers(app, reds, monkeypatch):
    monkeypatch.setattr(settings, "server", lambda: reds.policy("withhold"))
    wanted = {"images": [sent(reds.picture("red"))], "policy": "default"}
    told = app.ask("POST", "/safegen/check", wanted).content
    assert told["pictures"][0]["verdicts"][0]["action"] == "withhold"
    assert len(told["policies"]) == 2
    assert "image" not in told["pictures"][0]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"images": 1, "images": 2}',
        {},
        {"images": []},
        {"images": "x"},
        {"images": ["x"] * 17},
        {"images": [5]},
        {"images": ["!!"]},
        {"images": [base64.b64encode(b"no picture").decode()]},
        {"images": ["AAAA"], "policy": 5},
        {"images": ["AAAA"], "policy": ""},
        {"images": ["AAAA"], "unknown": 1},
    ],
)
def test_junk_is_told(app, body):
    answer = app.ask("POST", "/safegen/check", {"policy": "default"} | body if
                     isinstance(body, dict) else body)  # fmt: skip
    assert answer.status == 422
    assert len(answer.content["detail"]) > 10


def test_a_picture_that_moves_is_refused(app, reds):
    frames = [reds.picture(), reds.picture("red")]
    moving = sent(frames[0], "PNG", save_all=True, append_images=frames[1:])
    answer = app.ask("POST", "/safegen/check", {"images": [moving], "policy": "default"})
    assert (answer.status, answer.content["error"]) == (422, "picture_unreadable")


def test_limits(app, reds, monkeypatch):
    wanted = {"images": [sent(reds.picture())] * 2, "policy": "default"}
    monkeypatch.setattr(api, "MOST_PIXELS", 32 * 24)
    assert app.ask("POST", "/safegen/check", wanted).status == 413
    monkeypatch.setattr(api, "MOST_PIXELS", 2 * 32 * 24)
    monkeypatch.setattr(api, "MOST_BYTES", 100)
    assert app.ask("POST", "/safegen/check", wanted).status == 413
    monkeypatch.setattr(api, "MOST_BYTES", 10000)
    monkeypatch.setattr(api, "MOST_A_MINUTE", 2)
    statuses = [app.ask("POST", "/safegen/check", wanted).status for _ in range(3)]
    assert statuses == [200, 200, 429]
