# SPDX-License-Identifier: GPL-3.0-or-later
"""The run folder: who may write to it, which states it keeps, what it takes for a state."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("filelock")

from safegen_core import atomic  # noqa: E402
from safegen_core.train import from_values  # noqa: E402
from safegen_core.train.config import Compute  # noqa: E402
from safegen_core.train.run_folder import Facts, Metrics, RunFolder, computed_by  # noqa: E402

FACTS = Facts(0, "settings", "pictures", "base", 1, "2.0", "cpu")


@pytest.fixture
def config(tmp_path):
    def make(**overrides):
        values = {
            "base": {"path": "base"},
            "data": {"folder": "pictures"},
            "schedule": {"steps": 900},
            "run": {"out": str(tmp_path / "run")},
        }
        return from_values(values, overrides)

    return make


@pytest.fixture
def folder(config) -> RunFolder:
    found = RunFolder(config(), resume=False)
    with found.claimed():
        pass
    return found


def state(step: int) -> dict[str, torch.Tensor]:
    """Whatever the trainer may want to keep: 8-bit moments, counters, half precision."""
    return {
        "delta/a": torch.full((2, 3), float(step)),
        "adam/a/state1": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        "adam/a/step": torch.tensor(float(step)),
        "adam/count": torch.tensor(step),
        "scale": torch.tensor([65536.0, 3.0]),
        "half": torch.ones(2, dtype=torch.float16),
        "none": torch.empty(0),
    }


def shapes(step: int):
    return {name: (tuple(t.shape), t.dtype) for name, t in state(step).items()}


def save(folder: RunFolder, step: int, **options) -> Path:
    return folder.save_state(state(step), replace(FACTS, step=step), **options)


def states(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "state").iterdir())


def test_a_state_comes_back_as_it_was(folder):
    save(folder, 7)
    tensors, facts = folder.load_state(FACTS, shapes)
    assert facts == replace(FACTS, step=7)
    for name, tensor in state(7).items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_without_states_there_is_nothing_to_load(folder):
    assert folder.load_state(FACTS, shapes) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_are_kept(config, keep):
    folder = RunFolder(config(**{"run.keep": keep}), resume=False)
    for step in (8, 9, 10, 99, 100):
        save(folder, step)
    assert states(folder) == sorted(f"{s:06d}.safetensors" for s in (8, 9, 10, 99, 100)[-keep:])


def test_the_last_good_state_is_kept_beside_them(folder):
    save(folder, 1, good=True)
    save(folder, 2, good=True)
    for step in (3, 4, 5):
        save(folder, step)
    assert states(folder) == [
        *("000002.good.safetensors", "000004.safetensors", "000005.safetensors")
    ]
    assert folder.load_state(FACTS, shapes)[1].step == 5
    assert folder.load_state(FACTS, shapes, good=True)[1].step == 2


def test_a_good_state_is_a_state(folder):
    save(folder, 1)
    save(folder, 2, good=True)
    assert folder.load_state(FACTS, shapes)[1].step == 2


def test_without_a_good_state_none_is_loaded(folder):
    save(folder, 1)
    assert folder.load_state(FACTS, shapes, good=True) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("half"),
        lambda t: t.update(other=torch.ones(1)),
        lambda t: t.update(scale=torch.ones(3)),
        lambda t: t.update(scale=t["scale"].double()),
        lambda t: t.update({"adam/a/state1": t["adam/a/state1"].to(torch.int8)}),
        lambda t: t.update(scale=t["scale"] * math.nan),
        lambda t: t.update(half=t["half"] * math.inf),
    ],
    ids=["missing", "surplus", "shape", "dtype", "integers", "nan", "infinite-half"],
)
def test_what_is_not_such_a_state_is_passed_over(folder, caplog, change, refusal):
    save(folder, 1)
    tensors = state(2)
    change(tensors)
    folder.save_state(tensors, replace(FACTS, step=2))
    assert folder.load_state(FACTS, shapes)[1].step == 1
    assert "000002.safetensors is damaged" in caplog.text
    (folder.path / "state" / "000001.safetensors").unlink()
    assert refusal(folder.load_state, FACTS, shapes) == "file_state"


@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_state(folder, content, refusal):
    (folder.path / "state").mkdir(exist_ok=True)
    (folder.path / "state" / "000001.safetensors").write_bytes(content)
    assert refusal(folder.load_state, FACTS, shapes) == "file_state"


@pytest.mark.parametrize(
    "told", ["", "{", "[]", "3", "null", "[" * 99_999, '{"step": 1}', '{"steps": []}']
)
def test_facts_that_make_no_sense_are_refused(folder, told, refusal):
    path = folder.path / "state" / "000001.safetensors"
    atomic.atomic_save_safetensors(state(1), path, {"safegen.state": told})
    assert refusal(folder.load_state, FACTS, shapes) == "file_state"


@pytest.mark.parametrize("name", ["config", "data", "base"])
def test_another_run_is_refused(folder, name, refusal):
    save(folder, 1)
    assert refusal(folder.load_state, replace(FACTS, **{name: "other"}), shapes) == "config_resume"


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 8), ("torch", "3.0"), ("compute", "GPU, precision bf16")]
)
def test_another_machine_is_told_of_and_allowed(folder, caplog, name, value):
    save(folder, 1)
    assert folder.load_state(FACTS, shapes) is not None
    assert caplog.text == ""
    assert folder.load_state(replace(FACTS, **{name: value}), shapes) is not None
    assert "not be bit-identical" in caplog.text
    assert str(value) in caplog.text
    assert str(getattr(FACTS, name)) in caplog.text


def test_states_from_before_there_was_a_compute_line_are_read(folder):
    told = {k: v for k, v in vars(replace(FACTS, step=1)).items() if k != "compute"}
    path = folder.path / "state" / "000001.safetensors"
    atomic.atomic_save_safetensors(state(1), path, {"safegen.state": json.dumps(told)})
    assert folder.load_state(FACTS, shapes)[1].compute == ""


def test_the_compute_line_tells_arithmetic_and_not_threads():
    cpu, plain = torch.device("cpu"), Compute()
    assert computed_by(plain, cpu) == computed_by(replace(plain, threads=7), cpu)
    for other in (
        replace(plain, at_once=2),
        replace(plain, precision="bf16"),
        replace(plain, storage="fp8"),
    ):
        assert computed_by(plain, cpu) != computed_by(other, cpu)


def test_a_folder_is_claimed_once(config, folder, refusal):
    twin = RunFolder(config(), resume=True)
    with folder_again(config).claimed():
        assert refusal(twin.claimed().__enter__) == "file_exists"
    with twin.claimed():
        pass


def folder_again(config) -> RunFolder:
    return RunFolder(config(), resume=True)


HOLD = """
import sys
from safegen_core.train import load_config
from safegen_core.train.run_folder import RunFolder
with RunFolder(load_config(sys.argv[1]), resume=True).claimed():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_no_lock(config, folder, refusal):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path / "config.toml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert held.stdout.readline() == "held\n"
        assert refusal(folder_again(config).claimed().__enter__) == "file_exists"
    finally:
        held.kill()
        held.communicate()
    with folder_again(config).claimed():
        pass


def test_a_lock_that_was_left_behind_keeps_nobody_out(config, folder):
    (folder.path / ".lock").touch()
    with folder_again(config).claimed():
        pass


def test_leftover_temporaries_are_swept_and_nothing_else(config, folder):
    save(folder, 1)
    kept = [folder.path / name for name in (".notes.tmp", "own.tmp", "state/.hidden", ".a.0.tmp")]
    left = [
        folder.path / name
        for name in (
            ".config.toml.0123456789abcdef.tmp",
            "state/.000002.safetensors.0123456789abcdef.tmp",
            "previews/.000002.png.fedcba9876543210.tmp",
        )
    ]
    (folder.path / "previews").mkdir()
    for path in (*kept, *left):
        path.touch()
    with folder_again(config).claimed():
        pass
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)
    assert "000001.safetensors" in states(folder)


def test_a_start_that_was_cut_short_can_be_made_again(config, tmp_path, refusal):
    """Killed before the configuration was there: there is no run yet, and nothing in the way."""
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.toml.0123456789abcdef.tmp"):
        (tmp_path / "run" / name).touch()
    assert refusal(RunFolder, config(), True) == "file_missing"
    folder = RunFolder(config(), False)
    with folder.claimed():
        pass
    assert (folder.path / "config.toml").is_file()


def test_a_used_folder_is_not_started_in(config, folder, refusal):
    assert refusal(RunFolder, config(), False) == "file_exists"


def test_of_two_starts_the_second_is_refused(config, refusal):
    first, second = RunFolder(config(), False), RunFolder(config(), False)
    with first.claimed():
        pass
    assert refusal(second.claimed().__enter__) == "file_exists"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_cannot_be_written_is_told_of(config, tmp_path, refusal):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o500)
    assert refusal(RunFolder(config(), False).claimed().__enter__) == "file_unwritable"


def test_a_file_in_the_place_of_the_folder_is_refused(config, tmp_path, refusal):
    (tmp_path / "run").touch()
    assert refusal(RunFolder, config(), False) == "file_exists"
    (tmp_path / "run").unlink()
    folder = RunFolder(config(), False)
    (tmp_path / "run").touch()
    assert refusal(folder.claimed().__enter__) == "file_unwritable"


def test_the_patch_is_named_as_the_folder_or_as_asked(config):
    assert RunFolder(config(), False).patch_path.name == "run.safetensors"
    assert RunFolder(config(**{"run.name": "mine"}), False).patch_path.name == "mine.safetensors"


@given(garbage=st.binary(max_size=50))
def test_metrics_after_the_state_are_dropped_with_whatever_was_cut_short(folder, garbage):
    path = folder.path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3)]
    path.write_bytes("".join(lines).encode() + garbage.replace(b"\n", b""))
    Metrics(folder.path, 2, tensorboard=False)
    assert path.read_text(encoding="utf-8") == "".join(lines[:2])


def test_logging_is_quiet_where_all_is_well(config, folder, caplog):
    caplog.set_level(logging.INFO)
    with folder_again(config).claimed():
        save(folder, 1)
        folder.load_state(FACTS, shapes)
    assert [r for r in caplog.records if r.name.startswith("safegen")] == []


@pytest.mark.parametrize("name", ["scale", "adam/a/state1"])
def test_another_adam_or_arithmetic_is_told_for_what_it_is(folder, refusal, name):
    save(folder, 1)
    other = {n: facts for n, facts in shapes(1).items() if n != name}
    assert refusal(folder.load_state, FACTS, lambda step: other) == "config_resume"
