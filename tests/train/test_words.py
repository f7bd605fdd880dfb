# SPDX-License-Identifier: GPL-3.0-or-later
"""The objectives of words only: their formulas by hand, and the latents the base imagines."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from safegen_core.errors import ConfigError  # noqa: E402
from safegen_core.train.base import Prompts  # noqa: E402
from safegen_core.train.config import Objective  # noqa: E402
from safegen_core.train.draws import Draws  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.objectives.esd import Esd  # noqa: E402
from safegen_core.train.objectives.guided import Guided  # noqa: E402
from safegen_core.train.objectives.sdd import Sdd  # noqa: E402
from safegen_core.train.objectives.trajectories import Trajectories  # noqa: E402
from safegen_core.train.objectives.words import Risky, squares  # noqa: E402

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
SHAPE = (4, 3, 3)
BANK = {
    "version": 1,
    "name": "stars",
    "pairs": [["a striped star", "a plain star"], ["two striped stars", "two plain stars"]],
    "retain": ["a dotted circle", "a plain square"],
    "test_unsafe": ["a large striped star"],
    "test_benign": ["a large plain square"],
}
KINDS = pytest.mark.parametrize("kind", [Esd, Sdd, Trajectories, Guided])


class Answers:
    """A denoiser whose answer to a prompt is one constant picture, plus a part of what it sees."""

    def __init__(self, prompts: int = 8, moved: float = 0.0) -> None:
        random = torch.Generator().manual_seed(0)
        self.base = torch.randn(prompts, *SHAPE, generator=random)
        self.delta = torch.full_like(self.base, moved).requires_grad_()
        self.asked: list[tuple] = []

    def __call__(self, z_t, t, c):
        self.asked.append((z_t, t, c))
        return self.base[c] + self.delta[c] + 0.1 * z_t

    def teacher(self, z_t, t, c):
        with torch.no_grad():
            return self.base[c] + 0.1 * z_t


@pytest.fixture(scope="session")
def bank(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("bank") / "stars.json"
    path.write_text(json.dumps(BANK))
    return str(path)


@pytest.fixture(params=["epsilon", "v_prediction"])
def schedule(request) -> NoiseSchedule:
    return NoiseSchedule((1 - BETAS).cumprod(0), request.param)


@pytest.fixture
def ready(bank, schedule):
    """`ready(Esd, denoiser, push=2.0)`: an objective that has imagined its latents."""

    def make(kind, denoiser=None, seed=0, **settings):
        settings = {"bank": bank, "trajectories": 6, "weight": "none", **settings}
        objective = kind(Objective(**settings), schedule)
        texts = ["", *objective.prompts()]
        prompts = Prompts(
            {text: row for row, text in enumerate(texts)}, torch.zeros(len(texts), 1, 1), None, None
        )
        objective.prepare(denoiser or Answers(), prompts, SHAPE, seed, quiet=True)
        return objective

    return make


@pytest.fixture
def risky() -> Risky:
    random = torch.Generator().manual_seed(1)
    return Risky(
        index=torch.tensor([0, 1]),
        z_t=torch.randn(2, *SHAPE, generator=random),
        t=torch.tensor([300, 700]),
        c_unsafe=torch.tensor([1, 3]),
        c_safe=torch.tensor([2, 4]),
    )


def test_esd_by_hand(ready, risky):
    answers = Answers(moved=0.5)
    unsafe, empty = answers.base[[1, 3]], answers.base[0]
    found = ready(Esd, push=2.0).unsafe_loss(answers, risky, Draws(0, 0, 2))
    wanted = (unsafe + 0.5 - (empty - 2 * (unsafe - empty))).square().mean((1, 2, 3))
    torch.testing.assert_close(found, wanted)


def test_sdd_by_hand(ready, risky):
    answers = Answers(moved=0.5)
    with torch.no_grad():
        answers.delta[0] = -1.0  # the target is the student's own, where it is by now
    found = ready(Sdd).unsafe_loss(answers, risky, Draws(0, 0, 2))
    wanted = (answers.base[[1, 3]] + 0.5 - (answers.base[0] - 1.0)).square().mean((1, 2, 3))
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    assert answers.delta.grad[0].abs().max() == 0
    assert answers.delta.grad[1].abs().max() > 0


@pytest.mark.parametrize("moved", [0.0, 3.0])
def test_trajectories_by_hand(ready, risky, moved):
    answers = Answers(moved=moved)
    found = ready(Trajectories, push=1.5).unsafe_loss(answers, risky, Draws(0, 0, 2))
    for place in range(2):
        seen = 0.1 * risky.z_t[place]
        empty, unsafe, safe = (
            answers.base[c] + seen for c in (0, risky.c_unsafe[place], risky.c_safe[place])
        )
        towards, away = (to + 1.5 * (to - empty) for to in (safe, unsafe))
        terms = [
            max((((y - towards) ** 2).mean() - ((y - away) ** 2).mean() + 0.01).item(), 0.0)
            for y in (unsafe + moved, empty + moved)
        ]
        assert found[place].item() == pytest.approx(sum(terms) / 2, rel=1e-4)


def test_trajectories_is_content_at_the_safe_prediction(ready, risky):
    answers = Answers()
    with torch.no_grad():
        for c, safe in ((0, 2), (1, 2)):
            guided = answers.base[safe] + 1.5 * (answers.base[safe] - answers.base[0])
            answers.delta[c] = guided - answers.base[c]
    one = Risky(*(value[:1] for value in vars(risky).values()))
    loss = ready(Trajectories, push=1.5).unsafe_loss(answers, one, Draws(0, 0, 1))
    assert loss.item() == 0


def test_guided_by_hand(ready, risky):
    answers = Answers()
    objective = ready(Guided, push=3.0)
    unsafe, safe = answers.base[[1, 3]], answers.base[[2, 4]]
    target = safe + 3 * (safe - unsafe)
    asked = set()
    for first in range(0, 40, 2):
        found = objective.unsafe_loss(answers, risky, Draws(0, first, 2))
        c = answers.asked[-1][2]
        asked |= set(c.tolist())
        torch.testing.assert_close(found, (answers.base[c] - target).square().mean((1, 2, 3)))
    assert asked == {0, 1, 3}  # the unsafe phrases, and no words


def test_guided_is_the_guided_prediction_at_every_scale(ready, risky):
    # once both answers are the target, guidance finds nothing to extrapolate
    answers = Answers()
    target = answers.base[2] + 3 * (answers.base[2] - answers.base[1])
    with torch.no_grad():
        for c in (0, 1):
            answers.delta[c] = target - answers.base[c]
    one = Risky(*(value[:1] for value in vars(risky).values()))
    loss = ready(Guided, push=3.0).unsafe_loss(answers, one, Draws(0, 0, 1))
    assert loss.item() == pytest.approx(0, abs=1e-10)
    without, within = (answers(one.z_t, one.t, torch.tensor([c])) for c in (0, 1))
    for scale in (1.0, 7.5):
        torch.testing.assert_close(without + scale * (within - without), target + 0.1 * one.z_t)


@KINDS
def test_before_the_first_step_nothing_is_lost_on_harmless_latents(ready, kind):
    _, parts = ready(kind, lambda_m=1.0).loss(Answers(), None, Draws(0, 0, 6))
    assert parts["loss_p"] == 0
    assert parts["loss_m"] > 0


@KINDS
def test_the_loss_is_a_mean_over_pairs(ready, kind):
    objective, answers = ready(kind, pure_noise=0.3), Answers(moved=0.3)
    whole, _ = objective.loss(answers, None, Draws(5, 0, 6))
    parts = [objective.loss(answers, None, Draws(5, first, 2))[0] for first in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@KINDS
def test_the_weights_and_the_parts_make_the_loss(ready, kind):
    objective = ready(kind, lambda_m=0.7, lambda_p=2.0, lambda_empty=0.5)
    loss, parts = objective.loss(Answers(moved=0.3), None, Draws(5, 0, 6))
    torch.testing.assert_close(loss.detach(), 0.7 * parts["loss_m"] + 2.5 * parts["loss_p"])
    assert not any(part.requires_grad for part in parts.values())


def test_words_are_left_out_by_their_weight(ready):
    def shares(**weights) -> float:
        answers = Answers()
        ready(Esd, **weights).loss(answers, None, Draws(0, 0, 400))
        return (answers.asked[-1][2] == 0).float().mean().item()

    assert shares(lambda_p=2.0, lambda_empty=0.0) == 0
    assert shares(lambda_p=0.0, lambda_empty=1.0) == 1
    assert shares(lambda_p=3.0, lambda_empty=1.0) == pytest.approx(0.25, abs=0.1)


def test_without_weights_only_what_has_to_go_counts(ready):
    loss, parts = ready(Esd, lambda_p=0.0, lambda_empty=0.0).loss(Answers(), None, Draws(0, 0, 4))
    torch.testing.assert_close(loss.detach(), parts["loss_m"])


def test_harmless_latents_come_with_harmless_phrases(ready):
    answers = Answers()
    objective = ready(Sdd, lambda_empty=0.0)
    objective.loss(answers, None, Draws(0, 0, 200))
    retain = {1 + objective.prompts().index(phrase) for phrase in BANK["retain"]}
    assert set(answers.asked[-1][2].tolist()) == retain


def test_pure_noise_comes_last(ready):
    answers = Answers()
    objective = ready(Esd, pure_noise=1.0)
    objective.loss(answers, None, Draws(0, 0, 50))
    z_t, t, _ = answers.asked[-1]
    assert t.min() >= 900
    assert z_t.std().item() == pytest.approx(1, abs=0.1)
    assert z_t.mean().item() == pytest.approx(0, abs=0.1)


def test_timesteps_keep_to_their_ranges(ready):
    answers = Answers()
    objective = ready(Esd, t_min=500, t_max=510, preserve_t_min=7, preserve_t_max=7)
    objective.loss(answers, None, Draws(0, 0, 100))
    (_, risky, _), (_, kept, _) = answers.asked
    assert set(risky.tolist()) == set(range(500, 511))
    assert set(kept.tolist()) == {7}


def test_min_snr_weighs_what_has_to_go(ready, schedule):
    t = 100
    snr = (schedule.abar[t] / (1 - schedule.abar[t])).item()
    plain, weighed = (
        ready(Esd, weight=weight, t_min=t, t_max=t).loss(Answers(), None, Draws(0, 0, 3))[1]
        for weight in ("none", "min_snr")
    )
    factor = 5 / (snr if schedule.prediction == "epsilon" else snr + 1)
    assert snr > 5
    assert (weighed["loss_m"] / plain["loss_m"]).item() == pytest.approx(factor, rel=1e-4)


def test_what_is_imagined_follows_from_the_seed(ready):
    first, again, other = (ready(Esd, seed=seed) for seed in (3, 3, 4))
    for name in ("z_unsafe", "z_kept"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
        assert torch.isfinite(getattr(first, name)).all()
    assert len(first.z_unsafe) == 6
    assert not torch.equal(first.z_unsafe[0], first.z_unsafe[2])  # one phrase, two pictures


def test_only_the_base_imagines(ready):
    torch.testing.assert_close(
        ready(Esd, Answers(moved=9.0)).z_unsafe, ready(Esd, Answers()).z_unsafe
    )


def test_everything_to_retain_is_imagined(ready):
    objective = ready(Esd, trajectories=1)
    assert len(objective.z_unsafe) == 1
    assert sorted(objective.c_kept.tolist()) == [5, 6]


def test_the_test_phrases_are_left_alone(ready):
    prompts = ready(Guided).prompts()
    assert not set(prompts) & {*BANK["test_unsafe"], *BANK["test_benign"]}
    assert len(prompts) == 6


@KINDS
def test_no_phrase_is_shown(bank, schedule, kind, caplog, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    objective = kind(Objective(bank=bank, trajectories=2), schedule)
    rows = {text: row for row, text in enumerate(["", *objective.prompts()])}
    prompts = Prompts(rows, torch.zeros(len(rows), 1, 1), None, None)
    with caplog.at_level(0):
        objective.prepare(Answers(), prompts, SHAPE, 0, quiet=False)
        objective.loss(Answers(), None, Draws(0, 0, 2))
    shown = "".join(capsys.readouterr()) + caplog.text
    assert "star" not in shown
    assert "circle" not in shown


@KINDS
def test_timesteps_the_base_lacks_are_refused(bank, schedule, kind):
    with pytest.raises(ConfigError, match="at most 999"):
        kind(Objective(bank=bank, t_max=1000), schedule)


def test_squares_are_means_of_each_pair():
    x = torch.arange(8.0).reshape(2, 1, 2, 2)
    assert squares(x, torch.zeros_like(x)).tolist() == [3.5, math.fsum([16, 25, 36, 49]) / 4]
