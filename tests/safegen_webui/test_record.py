# SPDX-License-Identifier: GPL-3.0-or-later
"""What a picture's parameters say comes back as the same choice, and nothing else does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from safegen_webui import record, settings
from safegen_webui.jobs import Job
from safegen_webui.protection import NOTHING, Asked

OURS = {
    "version": 1,
    "name": "our own, and long",
    "images": {"labels": {"FACE_FEMALE": {"threshold": 0.5, "action": "censor"}}},
}


@pytest.fixture
def shared(webui, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "safegen" / "policies"
    folder.mkdir(parents=True)
    (folder / "ours.json").write_text(json.dumps(OURS))
    webui("paths").models_path = str(tmp_path / "models")
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    return webui("shared")


def written(job):
    p = SimpleNamespace(extra_generation_params={"Eta": 1})
    record.write(p, job)
    assert p.extra_generation_params.pop("Eta") == 1
    return p.extra_generation_params


def read(parameters):
    return [find(parameters) for find in record.pasted()]


@pytest.mark.parametrize(
    "asked",
    [
        Asked(),
        Asked(patch="required", strength=0.5, prompts="strict", images="ours.json"),
        Asked(patch="auto", prompts="off", images="off"),
        Asked(images="art", action="withhold"),
    ],
)
def test_what_is_written_is_pasted(shared, asked):
    parameters = written(Job(settings.protection(asked)))
    assert all(type(value) is str for value in parameters.values())
    assert not {"True", "False"} & set(parameters.values())
    values = read(parameters)
    wanted = [getattr(asked, name) for name in Asked.__dataclass_fields__]
    if asked.images == "off":
        wanted[-1] = None
    assert values == wanted


def test_no_protection_is_told_and_pasted(shared):
    parameters = written(Job(NOTHING))
    assert parameters == {"SafeGen": "off"}
    assert read(parameters) == [False, None, None, None, None, None]


def test_the_patch_that_was_on_is_named_by_its_hash(shared):
    put = {"name": "a.safetensors", "id": "0123456789abcdef"}
    job = Job(settings.protection(Asked()), patch={"base": put, "refiner": put, "other": None})
    assert written(job)[record.USED] == "a.safetensors 0123456789ab"


def test_a_servers_policy_is_written_and_the_own_one_pasted(shared, tmp_path):
    file = tmp_path / "server.json"
    file.write_text(json.dumps(OURS | {"name": "the server's"}))
    shared.cmd_opts.safegen_policy = str(file)
    parameters = written(Job(settings.protection(Asked(images="strict"))))
    assert parameters[record.CHECK] == "the server's; strict"
    assert read(parameters)[4] == "strict"


@pytest.mark.parametrize("value", ["True", "False", "", "nope", "1e999", "nan", "-1", "None"])
def test_what_cannot_be_chosen_leaves_a_choice_alone(shared, value):
    names = [record.ENABLED, record.PATCH, record.PROMPT, record.CHECK, record.ACTION]
    names += [record.STRENGTH]
    assert read(dict.fromkeys(names, value)) == [None] * 6


def test_parameters_of_others_say_nothing(shared):
    assert read({}) == [None] * 6
    record.write(SimpleNamespace(), Job(NOTHING))
    record.write(SimpleNamespace(extra_generation_params=None), Job(NOTHING))
