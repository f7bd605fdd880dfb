# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts run: only a missing model is installed, and a door that fails lets nothing through."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """An A1111 that is starting; gives the arguments of its pip."""
    host = types.SimpleNamespace(asked=[], error=None)

    def run_pip(command, desc=None):
        host.asked.append(command)
        if host.error:
            raise host.error

    modules = types.ModuleType("modules")
    modules.__path__ = []
    paths = types.ModuleType("modules.paths_internal")
    paths.models_path = str(tmp_path)
    module = types.ModuleType("launch")
    module.run_pip = run_pip
    for one in (modules, paths, module):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return host


def test_without_a_host_nothing_happens(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "launch", None)
    _source("install")["main"]()
    assert capsys.readouterr().out == ""


def test_only_the_model_is_added_without_its_requirements(launch, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _source("install")["main"]()
    assert launch.asked == ["install --no-deps nudenet==3.4.2"]


def test_a_detector_that_is_there_is_enough(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = tmp_path / "safegen" / "detectors"
    folder.mkdir(parents=True)
    (folder / "own.onnx").touch()
    _source("install")["main"]()
    assert launch.asked == []


def test_offline_is_a_sentence(launch, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    launch.error = RuntimeError("no network")
    _source("install")["main"]()
    assert capsys.readouterr().out.count("\n") == 1


def test_the_flags_have_defaults():
    parser = argparse.ArgumentParser()
    _source("preload")["preload"](parser)
    assert vars(parser.parse_args([])) == {"safegen_dir": None, "safegen_policy": None}


@pytest.fixture
def door(monkeypatch):
    """Runs scripts/safegen_webui.py on a host whose `start` is given; gives its processing."""
    processing = types.ModuleType("modules.processing")
    processing.process_images_inner = original = lambda p: "a picture"
    modules = types.ModuleType("modules")
    modules.processing, modules.__path__ = processing, []
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.processing", processing)
    script = types.ModuleType("safegen_webui.script")
    script.SafeGen = type("SafeGen", (), {})
    monkeypatch.setitem(sys.modules, "safegen_webui.script", script)

    def run(start):
        extension = types.ModuleType("safegen_webui.extension")
        extension.start = start
        monkeypatch.setitem(sys.modules, "safegen_webui.extension", extension)
        return runpy.run_path(str(ROOT / "scripts" / "safegen_webui.py"))

    run.processing, run.original = processing, original
    return run


def fails():
    raise ImportError("a file is missing")


def test_an_extension_that_cannot_start_makes_no_picture(door):
    with pytest.raises(ImportError, match="a file is missing"):
        door(fails)
    with pytest.raises(RuntimeError, match=r"no pictures are made: ImportError: a file is missing"):
        door.processing.process_images_inner(None)


def test_reload_after_mending_makes_pictures_again(door):
    for _ in range(2):
        with pytest.raises(ImportError):
            door(fails)
    names = door(lambda: None)
    assert door.processing.process_images_inner is door.original
    assert names["SafeGen"].__name__ == "SafeGen"


def test_the_host_finds_one_script_only(door):
    names = door(lambda: None)
    classes = [value for value in names.values() if isinstance(value, type)]
    assert classes == [names["SafeGen"]]


def _source(name):
    """A file's names, run without asking the import system, which the test has changed."""
    names = {"__name__": name}
    exec(compile((ROOT / f"{name}.py").read_text("utf-8"), name, "exec"), names)
    return names
