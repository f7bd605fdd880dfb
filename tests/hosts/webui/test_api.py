# SPDX-License-Identifier: GPL-3.0-or-later
"""The API of real hosts: arguments of anybody, the server's policy, the host's own logins."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from tests.hosts.webui import server

pytestmark = pytest.mark.host

OFF = [False, "off", 0, "off", "off", "as the policy says"]


def _login(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.fixture(scope="module", params=server.KINDS)
def host(request, tmp_path_factory):
    """One host for all tests, whose API wants a login."""
    if reason := server.lacking(request.param):
        pytest.skip(reason)
    data = tmp_path_factory.mktemp(request.param)
    with server.Host(request.param, data, "--api-auth", "somebody:pass") as running:
        opened = running._ask
        running._ask = lambda request: opened(_with(request, "somebody:pass"))
        running.open = opened
        running.options(
            live_previews_enable=False, samples_save=False, safegen_prompts="off",
            safegen_images="off",
        )  # fmt: skip
        yield running


def _with(request, login):
    for name, value in _login(login).items():
        request.add_header(name, value)
    return request


def _args(*values):
    return {"alwayson_scripts": {"safegen": {"args": [*values]}}}


def _told(host, **body):
    answer = host.post("/sdapi/v1/txt2img", **(server.request() | body))
    return json.loads(answer["info"])["infotexts"][0]


@pytest.mark.parametrize("value", ["false", {}, None, 1, [False]])
def test_junk_is_refused_and_the_server_lives(host, value):
    with pytest.raises(server.Refused, match="config_value") as error:
        host.txt2img(**_args(value))
    assert error.value.status == 500
    assert host.alive


def test_a_required_patch_that_is_not_there_is_a_refusal(host):
    with pytest.raises(server.Refused, match=r"\[(model|patch)_"):
        host.txt2img(**_args(True, "required", 1, "off", "off"))


def test_parameters_are_written_and_read_back(host):
    told = _told(host, **_args(True, "auto", 0.5, "off", "off", "withhold"))
    assert "SafeGen: on, SafeGen patch: auto, SafeGen strength: 0.5" in told
    if host.kind == "forge":
        return  # its API fails for any infotext, with a TypeError of its own
    again = _told(host, infotext=told)
    assert again[again.index("SafeGen: ") :] == told[told.index("SafeGen: ") :]
    off = _told(host, infotext=told.replace("SafeGen: on", "SafeGen: off"))
    assert "SafeGen: off" in off


def test_the_arguments_are_listed_with_their_choices(host):
    listed = host.get("/sdapi/v1/script-info")
    ours = [one for one in listed if one["name"] == "safegen"]
    assert len(ours) == 2
    for one in ours:
        assert [argument["label"] for argument in one["args"]][1:5] == [
            "Patch", "Strength", "Sanitizer", "Image check",
        ]  # fmt: skip
        assert one["args"][0]["value"] is True


@pytest.mark.parametrize("path", ["status", "check"])
@pytest.mark.parametrize("login", [None, "somebody:wrong", "somebody"])
def test_our_routes_want_the_hosts_login(host, path, login):
    import urllib.request

    data = None if path == "status" else b"{}"
    request = urllib.request.Request(f"{host.url}/safegen/{path}", data)
    with pytest.raises(server.Refused) as error:
        host.open(request if login is None else _with(request, login))
    assert error.value.status == 401


def test_the_status_tells_what_stands(host):
    status = host.get("/safegen/status")
    assert all(wrap["installed"] and wrap["outermost"] for wrap in status["wraps"])
    assert status["host"]["gradio"]


def test_a_picture_that_nobody_can_judge_is_told(host):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, format="PNG")
    image = base64.b64encode(file.getvalue()).decode()
    with pytest.raises(server.Refused) as error:
        host.post("/safegen/check", images=[image])
    assert error.value.status == 422  # the settings ask for no check
    for body in ({"images": []}, {"images": ["!"], "policy": "strict"}, {"policy": 1}, {"x": 1}):
        with pytest.raises(server.Refused) as error:
            host.post("/safegen/check", **body)
        assert error.value.status == 422


def test_a_request_is_seen_by_who_knows_its_secret(host):
    host.txt2img(**_args(*OFF, "the secret"), force_task_id="task(one)")
    job = host.post("/safegen/job", task="task(one)", page="the secret")
    assert job["known"]
    assert not job["running"]
    assert host.post("/safegen/job", task="task(one)", page="another") == {"known": False}


@pytest.mark.parametrize("kind", server.KINDS)
def test_no_argument_gets_round_the_servers_policy(kind, tmp_path):
    if reason := server.lacking(kind):
        pytest.skip(reason)
    policy = {
        "version": 1,
        "name": "ours",
        "images": {"labels": {"FACE_FEMALE": {"threshold": 0, "action": "withhold"}}},
        "patch": {"mode": "required", "strength": 1},
    }
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(policy))
    (tmp_path / "data").mkdir()
    with server.Host(kind, tmp_path / "data", "--safegen-policy", str(file)) as host:
        host.options(safegen_enabled=False, safegen_patch="off", safegen_images="off")
        for body in ({}, _args(*OFF), {"override_settings": {"safegen_enabled": False}}):
            with pytest.raises(server.Refused, match=r"\[\w+_\w+\]"):
                host.txt2img(**body)
        file.write_text("{")
        with pytest.raises(server.Refused, match=r"\[policy_"):
            host.txt2img(**_args(*OFF))
        assert host.alive
