# SPDX-License-Identifier: GPL-3.0-or-later
"""The controls stand in the order of the arguments, and show what a server fixes."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import fields

import pytest

pytest.importorskip("torch")

from safegen_webui import settings
from safegen_webui.protection import Asked

KEYS = [field.name for field in fields(Asked)]


class Component:
    """One of Gradio's: it keeps what it was given."""

    def __init__(self, *given, **options):
        self.given, self.value = given, options.get("value", given[0] if given else None)
        vars(self).update(options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def page(webui, monkeypatch, tmp_path):
    """Makes the accordion; under a server's policy, if one is given."""
    gradio = types.ModuleType("gradio")
    gradio.made = []

    def kind(name):
        def made(self, *given, **options):
            Component.__init__(self, *given, **options)
            gradio.made.append(self)

        return type(name, (Component,), {"__init__": made})

    for name in ("Checkbox", "Accordion", "Dropdown", "Slider", "Radio", "Textbox", "HTML", "Row"):
        setattr(gradio, name, kind(name))
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    webui("paths").models_path = str(tmp_path / "models")
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    monkeypatch.setattr(settings, "_policy", None)
    flags = webui("shared").cmd_opts

    def make(policy=None):
        from safegen_webui import ui

        if policy is not None:
            file = tmp_path / "policy.json"
            file.write_text(policy if isinstance(policy, str) else json.dumps(policy))
            flags.safegen_policy = str(file)
        controls, pasted, names = ui.controls(lambda name: f"script_txt2img_safegen_{name}")
        page = types.SimpleNamespace(**dict(zip([*KEYS, "page"], controls, strict=True)))
        page.controls, page.pasted, page.names = controls, pasted, names
        page.told = [one.given[0] for one in gradio.made if type(one).__name__ == "HTML"]
        return page

    return make


IMAGES = {"labels": {"FACE_FEMALE": {"threshold": 0.5, "action": "withhold"}}}


def test_the_controls_are_the_arguments(page):
    made = page()
    asked = Asked.read([one.value for one in made.controls[:-1]], Asked())
    assert asked == Asked()
    assert [one.elem_id.rpartition("_")[2] for one in made.controls] == [*KEYS, "page"]
    assert made.page.value == ""
    assert made.told == [""]


def test_the_host_does_not_freeze_todays_defaults(page):
    assert all(one.do_not_save_to_config for one in page().controls)


def test_every_control_is_pasted_into_but_the_secret(page):
    made = page()
    assert [one for one, _ in made.pasted] == made.controls[:-1]
    assert made.names == [name for _, name in made.pasted]


def test_what_the_server_fixes_is_shown_and_locked(page):
    policy = {
        "version": 1,
        "name": "<b>ours",
        "images": IMAGES,
        "patch": {"mode": "required", "strength": 0.5},
        "prompts": {"preset": "default"},
    }
    made = page(policy)
    assert (made.patch.given[0], made.patch.value) == (["required"], "required")
    assert made.patch.interactive is False
    assert made.prompts.given[0] == ["default", "strict"]
    assert "&lt;b&gt;ours" in made.told[0]


def test_what_the_server_leaves_open_is_open(page):
    made = page({"version": 1, "name": "ours", "images": IMAGES})
    assert made.patch.interactive
    assert made.prompts.given[0][0] == "off"
    assert "ours" in made.told[0]


def test_a_broken_policy_is_told_where_people_look(page):
    assert "policy" in page("{").told[0]
