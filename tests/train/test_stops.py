# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that must not go on stops, and what it had before is whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.storage import Weights  # noqa: E402
from safegen_core.train import optimiser, train  # noqa: E402
from safegen_core.train import run as run_module  # noqa: E402
from safegen_core.train.objectives.safegen import SafeGen  # noqa: E402


def run(config, **options):
    return train(config, progress=False, **options)


def states(config) -> list[Path]:
    return sorted((Path(config.run.out) / "state").iterdir())


@pytest.fixture
def poison(monkeypatch):
    """`poison(what, step, value)`: spoil the loss, or the gradient alone, of one step."""

    def spoil(what: str, step: int, value: float) -> None:
        counted = []

        def loss(self, *args):
            counted.append(1)
            found, parts = original(self, *args)
            return (found * value if len(counted) == step else found), parts

        def backward(self, found):
            original(self, found)
            counted.append(1)
            if len(counted) == step:
                next(iter(self.parameters.values())).grad.view(-1)[0] = value

        owner, name, spoilt = {
            "loss": (SafeGen, "loss", loss),
            "gradient": (optimiser.Adam, "backward", backward),
        }[what]
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, spoilt)

    return spoil


@pytest.mark.parametrize(
    ("what", "value", "step", "last"),
    [("loss", math.nan, 3, 2), ("gradient", math.nan, 4, 2), ("gradient", math.inf, 5, 4)],
)
def test_after_nan_or_overflow_the_last_state_is_good(
    make_config, tmp_path, monkeypatch, poison, refusal, what, value, step, last
):
    settings = {"schedule.steps": 6, "run.save_every": 2, "run.name": "patch"}
    config = make_config(**settings)
    poison(what, step, value)
    assert refusal(run, config) == "train_nonfinite"
    newest = states(config)[-1]
    assert newest.name == f"{last:06d}.safetensors"
    file = Weights(newest)
    assert all(bool(torch.isfinite(file.load(name).float()).all()) for name in file.shapes)
    assert not (Path(config.run.out) / "patch.safetensors").exists()
    monkeypatch.undo()
    whole = run(make_config(**settings, **{"run.out": str(tmp_path / "whole")}))
    assert run(config, resume=True).patch.id() == whole.patch.id()


def test_without_a_good_state_a_spoilt_run_leaves_none(make_config, poison, refusal):
    config = make_config(**{"run.save_every": 2})
    poison("loss", 1, math.nan)
    assert refusal(run, config) == "train_nonfinite"
    assert not (Path(config.run.out) / "state").exists()


@pytest.mark.parametrize("worst", [0.1, -math.inf])
def test_a_run_that_damages_ends_with_the_look_before(
    make_config, tmp_path, monkeypatch, caplog, worst
):
    seen = [0.9, 0.5, worst]
    monkeypatch.setattr(run_module.acceptance, "prompts", lambda config: [])
    settings = {"run.save_every": 0, "schedule.decay": 0.0}
    settings |= {"accept.samples": 1, "accept.every": 2, "accept.floor": 0.3}
    short = run(make_config(**settings, **{"run.out": str(tmp_path / "4"), "schedule.steps": 4}))
    monkeypatch.setattr(run_module.Run, "preservation", lambda self: seen.pop(0))
    config = make_config(**settings, **{"schedule.steps": 9})
    ended = run(config)
    assert seen == []
    assert ended.steps == 4
    assert ended.patch.id() == short.patch.id()
    assert "After step 6" in caplog.text
    assert [int(path.name.split(".")[0]) for path in states(config)] == [2, 4]


def test_a_run_that_damages_at_once_leaves_no_patch(make_config, monkeypatch, refusal):
    monkeypatch.setattr(run_module.acceptance, "prompts", lambda config: [])
    monkeypatch.setattr(run_module.Run, "preservation", lambda self: 0.1)
    config = make_config(**{"accept.samples": 1, "accept.every": 2, "accept.floor": 0.3})
    assert refusal(run, config) == "train_floor"
    assert not list(Path(config.run.out).glob("*.safetensors"))


def test_full_memory_is_told_with_what_would_fit(make_config, monkeypatch, refusal):
    def full(self, *args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SafeGen, "loss", full)
    assert refusal(run, make_config(), dry_run=True) == "train_memory"
    assert refusal(run, make_config()) == "train_memory"
