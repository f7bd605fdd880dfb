# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole run: what it writes, what it leaves alone, how it stops and goes on."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core import atomic, storage  # noqa: E402
from safegen_core.apply import apply  # noqa: E402
from safegen_core.delta import LowRank  # noqa: E402
from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.patch import Patch  # noqa: E402
from safegen_core.train import loop as loop_module  # noqa: E402
from safegen_core.train import run as run_module  # noqa: E402
from safegen_core.train import train  # noqa: E402
from safegen_core.train.config import Schedule  # noqa: E402
from safegen_core.train.objectives.safegen import SafeGen  # noqa: E402
from safegen_core.train.optimiser import learning_rate  # noqa: E402


def run(config, **options):
    return train(config, progress=False, **options)


def lines(folder: Path) -> list[dict]:
    """The metrics but for the time each step took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def digests(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_run_folder_holds_config_metrics_states_preview_and_patch(make_config):
    config = make_config(**{"preview.prompts": ("a red star", ""), "preview.steps": 2})
    seen = []
    result = run(config, on_step=seen.append)
    assert [record["step"] for record in seen] == [1, 2, 3, 4]
    assert seen[-1] == result.metrics
    assert sorted(path.name for path in result.folder.iterdir()) == [
        *(".lock", "config.toml", "metrics.jsonl", "patch.safetensors"),
        *("previews", "review.html", "state"),
    ]
    assert [p.name for p in sorted((result.folder / "state").iterdir())] == [
        *("000002.safetensors", "000004.safetensors"),
    ]
    assert (result.folder / "previews" / "000004.png").is_file()
    patch = Patch.read(result.patch_path)
    assert patch.scope == tuple(patch.family.specs)
    assert patch.metadata["safegen.objective"] == "safegen"
    assert patch.base is not None
    assert patch.id() == result.patch.id()
    told = patch.metadata["safegen.config"] + patch.metadata["safegen.training"]
    assert str(Path.cwd().anchor) not in told, "a patch must not tell the user's paths"


def test_patch_changes_the_model_and_the_base_files_stay(make_config, base_folder):
    from diffusers import UNet2DConditionModel

    before = digests(base_folder)
    result = run(make_config())
    assert digests(base_folder) == before
    unet = UNet2DConditionModel.from_pretrained(base_folder / "unet").eval()
    z, c = torch.ones(1, 4, 4, 4), torch.ones(1, 8, 64)
    with torch.no_grad():
        base = unet(z, 500, c).sample
        applied = apply(unet, result.patch)
        assert not torch.equal(unet(z, 500, c).sample, base)
        applied.remove()
        assert torch.equal(unet(z, 500, c).sample, base)


def test_same_seed_same_patch_other_seed_other_patch(make_config, tmp_path):
    ids = [
        run(make_config(**{"run.out": str(tmp_path / name), "run.seed": seed})).patch.id()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("settings", "micro"),
    [
        ({}, 1),
        ({}, 4),
        ({"compute.at_once": 2, "optimiser.ema": 0.99, "delta.rank": 2}, 6),
        ({"preset": "paper", "compute.at_once": 1, "optimiser.lr": 1e-3}, 8),
    ],
    ids=["first", "plain", "lowrank-ema-parts", "paper"],
)
def test_resumed_run_equals_uninterrupted_one(make_config, tmp_path, monkeypatch, settings, micro):
    settings = {"schedule.steps": 5, "run.save_every": 2, **settings}
    whole = run(make_config(**settings, **{"run.out": str(tmp_path / "whole")}))
    config = make_config(**settings, **{"run.out": str(tmp_path / "parts")})

    draw, drawn = run_module.Batches.draw, []

    def interrupt(self, first, draws):
        drawn.append(first)
        if len(drawn) == micro:  # in the middle of a step when gradients accumulate
            signal.raise_signal(signal.SIGINT)
        return draw(self, first, draws)

    monkeypatch.setattr(run_module.Batches, "draw", interrupt)
    with pytest.raises(SafeGenError, match="--resume") as stopped:
        run(config)
    assert stopped.value.code == "train_interrupted"
    parts = run(config, resume=True)
    assert parts.patch.id() == whole.patch.id()
    assert lines(parts.folder) == lines(whole.folder)


def test_resume_after_kill_drops_abandoned_metrics(make_config, tmp_path):
    whole = run(make_config(**{"run.out": str(tmp_path / "whole"), "schedule.steps": 5}))
    config = make_config(**{"run.out": str(tmp_path / "killed"), "schedule.steps": 5})

    def die(record):
        if record["step"] == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run(config, on_step=die)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = run(config, resume=True)
    assert resumed.patch.id() == whole.patch.id()
    assert lines(resumed.folder) == lines(whole.folder)


def test_resume_before_the_first_state_starts_at_the_beginning(make_config, tmp_path):
    whole = run(make_config(**{"run.out": str(tmp_path / "whole")}))
    config = make_config()

    def die(record):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run(config, on_step=die)
    assert run(config, resume=True).patch.id() == whole.patch.id()


def test_resume_takes_the_older_state_when_the_newest_is_damaged(make_config, tmp_path):
    config = make_config(**{"run.out": str(tmp_path / "run")})
    whole = run(config)
    whole.patch_path.unlink()
    newest = whole.folder / "state" / "000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run(config, resume=True).patch.id() == whole.patch.id()


def test_resume_refuses_other_settings(make_config):
    run(make_config())
    with pytest.raises(SafeGenError) as refused:
        run(make_config(**{"objective.lambda_m": 0.7}), resume=True)
    assert refused.value.code == "config_resume"


def test_resume_of_a_finished_run_returns_its_patch(make_config):
    done = run(make_config())
    before = digests(done.folder)
    again = run(make_config(), resume=True)
    assert again.patch.id() == done.patch.id()
    assert digests(done.folder) == before


def damaged(path: Path, tensors=lambda t: None, facts=lambda f: None) -> None:
    """Write a state again with some of it changed."""
    file = storage.Weights(path)
    kept, told = {n: file.load(n) for n in file.shapes}, json.loads(file.metadata["safegen.state"])
    tensors(kept)
    facts(told)
    metadata = {"safegen.state": json.dumps(told)}
    atomic.atomic_save_safetensors(kept, path, metadata, overwrite=True)


FIRST = "delta/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight.full"


@pytest.mark.parametrize(
    "damage",
    [
        {"tensors": lambda t: t.pop(FIRST)},
        {"tensors": lambda t: t.update({FIRST: t[FIRST][1:]})},
        {"tensors": lambda t: t.update({FIRST: t[FIRST] * math.nan})},
        {"tensors": lambda t: t.update({FIRST: t[FIRST].to(torch.int32)})},
        {"tensors": lambda t: t.update(other=torch.ones(1))},
        *({"facts": lambda f, step=step: f.update(step=step)} for step in ("4", -1, 99, 4.0, None)),
        {"facts": lambda f: f.update(surplus=1)},
    ],
    ids=[
        *("missing", "shape", "nan", "dtype", "surplus-tensor"),
        *("text-step", "negative-step", "step-after-the-end", "float-step", "no-step", "surplus"),
    ],
)
def test_resume_takes_the_older_state_when_the_newest_makes_no_sense(make_config, caplog, damage):
    whole = run(make_config())
    whole.patch_path.unlink()
    damaged(whole.folder / "state" / "000004.safetensors", **damage)
    assert run(make_config(), resume=True).patch.id() == whole.patch.id()
    assert "000004.safetensors is damaged" in caplog.text
    for state in (whole.folder / "state").iterdir():
        damaged(state, **damage)
    whole.patch_path.unlink()
    with pytest.raises(SafeGenError) as refused:
        run(make_config(), resume=True)
    assert refused.value.code == "file_state"


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b'{"step": null}\n', b'{"step": "1"}\n', b"[" * 100_000]
)
def test_damaged_metrics_lines_are_dropped(make_config, line):
    whole = run(make_config())
    wanted = lines(whole.folder)
    whole.patch_path.unlink()
    with (whole.folder / "metrics.jsonl").open("ab") as file:
        file.write(line)
    run(make_config(), resume=True)
    assert lines(whole.folder) == wanted


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_never_write_to_one_folder(make_config, resume, monkeypatch):
    if resume:
        run(make_config()).patch_path.unlink()
        for state in Path(make_config().run.out, "state").iterdir():
            state.unlink()
    prepared, twins = run_module.Run, []

    def twin(*args, **kwargs):
        """Prepare, and let a twin that was prepared at the same time begin and train first."""
        own = prepared(*args, **kwargs)
        if not twins:
            twins.append(own)
            run(make_config(), resume=resume, on_step=second)
        return own

    def second(record):
        """While the first one trains, a third comes to the folder."""
        with pytest.raises(SafeGenError) as refused:
            run(make_config(), resume=True)
        assert refused.value.code == "file_exists"
        assert str(Path(make_config().run.out, ".lock")) in refused.value.message

    monkeypatch.setattr(loop_module, "Run", twin)
    if resume:  # one after the other is well: the later one finds the run finished
        assert run(make_config(), resume=True).metrics == {}
    else:
        with pytest.raises(SafeGenError) as refused:
            run(make_config())
        assert refused.value.code == "file_exists"
    assert len(lines(Path(make_config().run.out))) == 4


def test_run_folder_is_never_overwritten(make_config):
    done = run(make_config())
    before = digests(done.folder)
    with pytest.raises(SafeGenError, match="--resume") as refused:
        run(make_config())
    assert refused.value.code == "file_exists"
    assert digests(done.folder) == before


def test_resume_without_a_run(make_config):
    with pytest.raises(SafeGenError) as refused:
        run(make_config(), resume=True)
    assert refused.value.code == "file_missing"


def test_dry_run_writes_nothing(make_config, tmp_path):
    before = digests(tmp_path)
    result = run(make_config(), dry_run=True)
    assert result.patch is None
    assert digests(tmp_path) == before
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_the_input_is_bad(make_config, tmp_path):
    with pytest.raises(SafeGenError) as refused:
        run(make_config(**{"data.resolution": 10}))
    assert refused.value.code == "config_range"
    assert list(tmp_path.iterdir()) == []


def test_nonfinite_loss_stops_and_saves_nothing(make_config, monkeypatch):
    config = make_config()
    original, calls = SafeGen.loss, []

    def poisoned(self, *args):
        calls.append(1)
        value, parts = original(self, *args)
        return (value * math.nan, parts) if len(calls) == 4 else (value, parts)

    monkeypatch.setattr(SafeGen, "loss", poisoned)
    with pytest.raises(SafeGenError, match="no number") as stopped:
        run(config)
    assert stopped.value.code == "train_nonfinite"
    assert "--run.out" in stopped.value.message
    assert "--resume" not in stopped.value.message  # it would refuse another optimiser.lr
    states = Path(config.run.out) / "state"
    assert str(states) in stopped.value.message
    assert [path.name for path in states.iterdir()] == ["000002.safetensors"]


def test_disk_full_while_saving_keeps_the_state_before(make_config, monkeypatch):
    import errno

    config = make_config(**{"schedule.steps": 6})
    replace = atomic.os.replace

    def full(source, target):
        if "000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(SafeGenError, match="--resume") as stopped:
        run(config)
    assert stopped.value.code == "file_disk_full"
    folder = Path(config.run.out) / "state"
    assert [path.name for path in folder.iterdir()] == ["000002.safetensors"]
    monkeypatch.undo()
    assert run(config, resume=True).steps == 6


def test_low_rank_patch_has_factors_and_no_bias(make_config):
    patch = run(make_config(**{"delta.rank": 3, "delta.alpha": 6.0})).patch
    assert all(isinstance(delta, LowRank) for delta in patch.deltas.values())
    assert patch.ranks == (3,)
    assert patch.scope == patch.family.weight_names()
    assert {delta.alpha for delta in patch.deltas.values()} == {6.0}


def test_only_the_chosen_modules_are_trained(make_config):
    patch = run(make_config(**{"delta.modules": ("to_q", "to_k")})).patch
    assert {name.split(".")[-2] for name in patch.deltas} == {"to_q", "to_k"}


@pytest.mark.parametrize("target", ["offset", "exact", "teacher_local"])
def test_every_target_trains(make_config, target):
    result = run(make_config(**{"objective.target": target, "objective.pure_noise": 0.3}))
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_steps_on_one_batch_lower_its_loss(make_config):
    prepared = run_module.Run(make_config(), dry_run=True)
    losses = []
    for _ in range(6):
        losses.append(prepared.gradient(0)["loss"])
        prepared.update(2)
    assert all(a > b for a, b in itertools.pairwise(losses))


def test_bf16_stays_near_fp32(make_config, tmp_path):
    exact = run(make_config(**{"run.out": str(tmp_path / "fp32")}))
    rough = run(make_config(**{"run.out": str(tmp_path / "bf16"), "compute.precision": "bf16"}))
    for a, b in zip(lines(exact.folder), lines(rough.folder), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_learning_rate_rises_stays_and_falls(shape):
    schedule = Schedule(steps=100, warmup=10, decay=0.4, shape=shape)
    rates = [learning_rate(schedule, 2.0, step) for step in range(100)]
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert rates[10:60] == [2.0] * 50
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[60:]))


def test_constant_learning_rate():
    rates = {learning_rate(Schedule(steps=7), 1e-5, step) for step in range(7)}
    assert rates == {1e-5}
