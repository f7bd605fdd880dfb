# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds without anybody asking: options that may be spoilt, and a policy that may not."""

from __future__ import annotations

import json
import os
import sys
import types

import pytest

pytest.importorskip("torch")

from safegen_core.errors import PolicyError
from safegen_webui import previews, settings
from safegen_webui.protection import NOTHING, Asked

POLICY = {
    "version": 1,
    "name": "the server's",
    "images": {"labels": {"FACE_FEMALE": {"threshold": 0.5, "action": "withhold"}}},
    "patch": {"mode": "required", "strength": 0.5},
    "prompts": {"preset": "strict"},
}


@pytest.fixture
def shared(webui, monkeypatch, tmp_path):
    webui("paths").models_path = str(tmp_path / "models")
    monkeypatch.setattr(settings, "_policy", None)
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    return webui("shared")


@pytest.fixture
def server(shared, tmp_path):
    """The file of the server's policy."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    shared.cmd_opts.safegen_policy = str(file)
    return file


def test_every_field_has_an_option_that_the_api_may_not_change(shared, monkeypatch):
    names = ("Checkbox", "Dropdown", "Slider", "Radio")
    gradio = types.SimpleNamespace(**{name: object() for name in names})
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    settings.register()
    settings.register()  # the page is made anew
    options = shared.labels
    assert all(
        option.restrict_api and option.section[1] == "SafeGen" for option in options.values()
    )
    assert options[settings.key("images")].component_args()["choices"][0] == "off"
    assert settings.defaults() == Asked()
    assert settings.previews() == previews.JUDGED


def test_defaults_are_the_options(shared):
    shared.opts.safegen_images = "strict"
    shared.opts.safegen_strength = 0.5
    assert settings.defaults() == Asked(images="strict", strength=0.5)
    assert [policy.name for policy in settings.standing().images] == ["strict"]


@pytest.mark.parametrize("value", [None, {}, [], float("nan"), -1, ""])
@pytest.mark.parametrize("name", ["enabled", "strength", "images", "prompts", "action"])
def test_a_spoilt_option_counts_as_untouched(shared, name, value):
    setattr(shared.opts, settings.key(name), value)
    assert settings.defaults() == Asked()


@pytest.mark.parametrize("value", [None, "everything", 1])
def test_spoilt_previews_are_judged(shared, value):
    setattr(shared.opts, settings.PREVIEWS, value)
    assert settings.previews() == previews.JUDGED


def test_nothing_is_asked_for_and_nothing_demanded(shared):
    assert settings.protection(Asked(enabled=False)) == NOTHING
    assert settings.server() is None


def test_a_default_policy_that_is_gone_is_told(shared):
    shared.opts.safegen_images = "gone.json"
    with pytest.raises(PolicyError) as error:
        settings.standing()
    assert error.value.code == "policy_missing"


def test_the_server_raises_even_what_is_off(server):
    protection = settings.protection(Asked(enabled=False))
    assert [policy.name for policy in protection.images] == ["the server's"]
    assert (protection.patch, protection.prompts) == ("required", "strict")
    assert protection.must_patch


def test_the_policy_is_read_again_when_it_changes(server):
    assert settings.server() is settings.server()
    server.write_text(json.dumps(POLICY | {"name": "another"}))
    os.utime(server, ns=(1, 1))
    assert settings.server().name == "another"


@pytest.mark.parametrize("spoil", ["gone", "broken", "folder"])
def test_a_policy_that_cannot_be_read_any_more_refuses(server, spoil, caplog):
    assert settings.server() is not None
    server.unlink()
    if spoil == "broken":
        server.write_text("{")
    if spoil == "folder":
        server.mkdir()
    for _ in range(2):  # a policy of before is no way round it
        with pytest.raises(PolicyError) as refused:
            settings.protection(Asked())
    assert str(server) in caplog.text
    assert server.name not in refused.value.message  # nobody else's business


def test_the_environment_names_it_too(shared, server, monkeypatch):
    shared.cmd_opts.safegen_policy = None
    monkeypatch.setenv(settings.VARIABLE, str(server))
    assert settings.server().name == "the server's"
