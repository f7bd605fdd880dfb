# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration: where values come from, what is refused, and that every key does something."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from safegen_core import cli
from safegen_core.errors import ConfigError
from safegen_core.train import config, flags
from safegen_core.train.config import GROUPS
from safegen_core.train.config_file import from_values, load_config, read_preset

NEEDED = {"base": {"path": "b"}, "data": {"folder": "d"}, "run": {"out": "o"}}
KEYS = [(g, f.name) for g, kind in GROUPS.items() for f in dataclasses.fields(kind)]
METHOD = ("objective", "conditioning", "delta", "optimiser", "schedule")
WORDS = {"bank", "trajectories", "guidance", "push", "lambda_empty"}  # no matter with pictures


def refused(code: str, **groups) -> str:
    values = {group: {**NEEDED.get(group, {}), **groups.get(group, {})} for group in GROUPS}
    values.update({name: value for name, value in groups.items() if name not in GROUPS})
    with pytest.raises(ConfigError) as error:
        from_values(values)
    assert error.value.code == code
    return error.value.message


def test_flag_beats_file_beats_preset_beats_default(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'version = 1\npreset = "paper"\n[base]\npath = "b"\n[data]\nfolder = "d"\n'
        '[run]\nout = "o"\n[objective]\nlambda_m = 0.2\n[optimiser]\nlr = 1\n'
    )
    found = load_config(file, {"optimiser.lr": 0.5})
    assert found.optimiser.lr == 0.5
    assert found.objective.lambda_m == 0.2
    assert found.objective.lambda_p == 0.9  # paper
    assert found.run.seed == 0
    assert load_config(file, preset="default").objective.lambda_p != 0.9


def test_paths_start_at_the_file_or_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "run.toml"
    file.write_text('[base]\npath = "b"\n[data]\nfolder = "../d"\n[run]\nout = "o"\n')
    monkeypatch.chdir(tmp_path)
    found = load_config(file, {"run.out": "mine"})
    assert Path(found.base.path) == tmp_path / "there" / "b"
    assert Path(found.data.folder) == tmp_path / "d"
    assert Path(found.run.out) == tmp_path / "mine"


def test_written_configuration_reads_back_the_same(tmp_path):
    odd = 'quote " backslash \\ line\nend \x7f é 星'
    written = from_values(
        NEEDED, {"preview.prompts": [odd, ""], "optimiser.lr": 1e-05, "run.tensorboard": False}
    )
    (tmp_path / "c.toml").write_text(written.to_toml(), encoding="utf-8")
    assert load_config(tmp_path / "c.toml") == written


@pytest.mark.parametrize("name", ["paper", "default"])
def test_presets_load_and_name_every_key_of_the_method(name):
    values = read_preset(name)
    from_values(NEEDED, preset=name)
    for group in METHOD:
        known = {f.name for f in dataclasses.fields(GROUPS[group])}
        assert set(values[group]) >= known - WORDS


def test_paper_is_the_official_recipe():
    paper = from_values(NEEDED, preset="paper")
    official = {
        paper.objective: {"target": "offset", "weight": "none", "lambda_m": 0.1, "lambda_p": 0.9},
        paper.conditioning: {"empty": 1.0, "own": 0.0, "shuffled": 0.0},
        paper.optimiser: {"lr": 1e-5, "weight_decay": 1e-2, "clip": 1.0, "ema": 0.9999},
        paper.schedule: {"steps": 1000, "batch": 5, "warmup": 0, "decay": 0.0},
    }
    for group, keys in official.items():
        assert {key: getattr(group, key) for key in keys} == keys
    assert paper.objective.preserve == "noise"
    assert paper.optimiser.decay_on == "weight"


def test_unknown_names_come_with_the_nearest():
    assert "objective.lambda_m" in refused("config_unknown", objective={"lamda_m": 1.0})
    assert "optimiser" in refused("config_unknown", optimizer={"lr": 1.0})
    assert "paper" in refused("config_unknown", preset="papper")


def test_names_near_to_nothing_come_with_all_there_are():
    message = refused("config_unknown", x={"lr": 1.0})
    assert "did you mean" not in message
    assert all(group in message for group in GROUPS)
    message = refused("config_range", objective={"target": "zzz"})
    assert "did you mean" not in message
    assert "teacher_local" in message


@pytest.mark.parametrize("preset", [3, ["paper"], {"name": "paper"}, False])
def test_a_preset_is_a_string(preset):
    assert "preset" in refused("config_type", preset=preset)


def test_a_byte_order_mark_is_no_text(tmp_path):
    text = '[base]\npath = "b"\n[data]\nfolder = "d"\n[run]\nout = "o"\n'
    (tmp_path / "c.toml").write_text(text, encoding="utf-8-sig")
    assert load_config(tmp_path / "c.toml").base.path == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("schedule", "steps", "many"),
        ("schedule", "steps", 1.5),
        ("schedule", "steps", True),
        ("optimiser", "lr", "fast"),
        ("run", "tensorboard", 1),
        ("run", "name", 7),
        ("preview", "prompts", "one"),
        ("preview", "prompts", [1]),
    ],
)
def test_wrong_types(group, key, value):
    assert f"{group}.{key}" in refused("config_type", **{group: {key: value}})


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("schedule", "steps", 0),
        ("optimiser", "lr", -1.0),
        ("optimiser", "lr", float("nan")),
        ("optimiser", "lr", float("inf")),
        ("objective", "near_miss", 1.1),
        ("objective", "target", "exakt"),
        ("delta", "modules", ["to_q", "to_x"]),
        ("delta", "modules", []),
        ("run", "name", "../patch"),
        ("run", "out", ""),
        ("compute", "device", "gpu"),
    ],
)
def test_values_out_of_range(group, key, value):
    assert f"{group}.{key}" in refused("config_range", **{group: {key: value}})


@pytest.mark.parametrize(
    "groups",
    [
        {"conditioning": {"empty": 0, "own": 0, "shuffled": 0}},
        {"objective": {"t_min": 500, "t_max": 400}},
        {"objective": {"preserve": "noise", "pure_noise": 0.1}},
        {"objective": {"lambda_m": 0, "lambda_p": 0}},
        {"delta": {"rank": 4}, "optimiser": {"decay_on": "weight"}},
    ],
)
def test_settings_that_contradict_each_other(groups):
    refused("config_range", **groups)


def test_other_version_and_broken_files(tmp_path):
    assert "version 1" in refused("config_version", version=2)
    refused("config_type", objective2=1) if "objective2" in GROUPS else None
    (tmp_path / "bad.toml").write_text("[base\n")
    with pytest.raises(ConfigError, match=r"bad\.toml") as error:
        load_config(tmp_path / "bad.toml")
    assert error.value.code == "config_syntax"
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "none.toml")
    assert error.value.code == "config_unreadable"
    with pytest.raises(ConfigError) as error:
        from_values({**NEEDED, "objective": 3})
    assert error.value.code == "config_type"


def test_digest_ignores_where_and_how_often_but_not_what():
    whole = from_values(NEEDED)
    same = from_values(
        NEEDED, {"run.out": "elsewhere", "preview.steps": 3, "run.save_every": 1, "run.keep": 5}
    )
    other = from_values(NEEDED, {"optimiser.lr": 0.123})
    assert whole.digest() == same.digest() != other.digest()


def test_every_key_is_used():
    folder = Path(config.__file__).parent
    source = "\n".join(
        file.read_text(encoding="utf-8")
        for file in folder.rglob("*.py")
        if file.name not in ("config.py", "config_file.py", "flags.py")
    )
    for group, key in KEYS:
        assert re.search(rf"\b(?:{group}|settings|schedule|shares)\.{key}\b|\"{key}\"", source), key


def parse(*argv: str) -> dict:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_arguments(parser)
    found = vars(parser.parse_args(argv))
    return {key: value for key, value in found.items() if "." in key}


def test_every_key_is_a_flag_with_help():
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    text = parser.format_help()
    for group, key in KEYS:
        assert f"--{group}.{key}" in text
        about = next(f for f in dataclasses.fields(GROUPS[group]) if f.name == key).metadata
        assert about["help"]


def test_flags_override_only_what_was_said():
    assert parse() == {}
    assert parse(
        *("--objective.lambda_m", "0.1", "--delta.modules", "to_q", "to_k"),
        *("--no-run.tensorboard", "--schedule.steps", "7"),
    ) == {
        "objective.lambda_m": 0.1,
        "delta.modules": ["to_q", "to_k"],
        "run.tensorboard": False,
        "schedule.steps": 7,
    }


@pytest.mark.parametrize("argv", [["--schedule.steps", "x"], ["--objective.lamda_m", "1"]])
def test_bad_flags_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert argv[0] in capsys.readouterr().err


def test_command_says_what_is_wrong_and_returns_2(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("[objective]\nlamda_m = 1.0\n")
    assert cli.main(["train", str(tmp_path / "c.toml")]) == 2
    assert "objective.lambda_m" in capsys.readouterr().err


def test_hints_cover_every_field():
    for kind in GROUPS.values():
        hints = typing.get_type_hints(kind)
        assert set(hints.values()) <= {str, int, float, bool, tuple[str, ...]}
