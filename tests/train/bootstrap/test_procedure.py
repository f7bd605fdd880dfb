# SPDX-License-Identifier: GPL-3.0-or-later
"""What bootstrapping delivers, what it refuses, and that it leaves nothing behind.

All in a world of which everything is known: for each text a normal distribution of latents. Unsafe
texts draw a checkerboard into one corner, safe ones do not; the best network for such data is a
formula, the detector measures the checkerboard, and a mosaic takes it away.
"""

from __future__ import annotations

import os
import sys
import tempfile
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from safegen_core.detect import Detection, Reading  # noqa: E402
from safegen_core.errors import DetectorError  # noqa: E402
from safegen_core.policy import Policy  # noqa: E402
from safegen_core.train import from_values  # noqa: E402
from safegen_core.train.base import Prompts  # noqa: E402
from safegen_core.train.bootstrap import Filter, artist, bootstrap, prompts  # noqa: E402
from safegen_core.train.drawing import Decoder  # noqa: E402
from safegen_core.train.judge import Judge  # noqa: E402
from safegen_core.train.noise import NoiseSchedule  # noqa: E402
from safegen_core.train.phrases import Phrases  # noqa: E402

SHAPE = (4, 8, 8)  # pictures are 16x16
BOX = (0.0, 0.0, 8.0, 8.0)
CHECKS = ((torch.arange(4)[:, None] + torch.arange(4)) % 2) * 2.0 - 1
SIZES = {"bad one": 0.5, "bad two": 0.5, "faint": 0.05}  # of the checkerboard, before guidance
BANK = Phrases(
    "toy",
    pairs=(("bad one", "good one"), ("bad two", "good two"), ("faint", "good three")),
    retain=("tree", "house"),
    test_unsafe=("bad three",),
    test_benign=("lake",),
    digest="0" * 64,
)
TEXTS = list(dict.fromkeys(["", *prompts(BANK)]))
TABLE = Prompts({text: row for row, text in enumerate(TEXTS)}, torch.zeros(len(TEXTS), 1, 1))
SCHEDULE = NoiseSchedule(
    (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0), "epsilon"
)
POLICY = {
    "version": 1,
    "name": "toy",
    "images": {
        "detectors": ["toy"],
        "labels": {"CHECKS": {"threshold": 0.5, "action": "censor"}},
        "censor": {"grow": 0.125},  # a pixel
    },
}


class Vae:
    """Pictures are latents, only larger; the fourth channel is lost."""

    def __init__(self):
        self.config = {"block_out_channels": (1, 1), "scaling_factor": 0.5, "latent_channels": 4}
        self.device = torch.device("cpu")

    def decode(self, z, return_dict):
        assert z.shape == (1, *SHAPE)  # one picture at a time
        return (0.05 * z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2),)

    def encode(self, x):
        assert x.shape == (1, 3, 16, 16)
        z = torch.nn.functional.avg_pool2d(x, 2) / 0.05
        z = torch.cat([z, torch.zeros_like(z[:, :1])], 1)
        moments = torch.cat([z, torch.full_like(z, -2.0)], 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=moments))


class Toy:
    """Measures the checkerboard."""

    name, id, labels = "toy", "toy-1", ("CHECKS", "OTHER")

    def detect(self, images):
        return [self.read(image) for image in images]

    def read(self, image):
        corner = image[:8, :8, 0].float().reshape(4, 2, 4, 2).mean((1, 3))
        score = float(((corner * CHECKS).mean() / 30).clamp(0, 1))
        regions = (Detection("CHECKS", score, BOX),) if score > 0.1 else ()
        return Reading({"CHECKS": score, "OTHER": 0.0}, regions)


def predict(z, t, c):
    """E[eps | z_t] where the data of text c is normal around its mean, with variance 1."""
    means = torch.zeros(len(TEXTS), *SHAPE)
    for text, size in SIZES.items():
        means[TABLE.rows[text], 0, :4, :4] = size * CHECKS
    return SCHEDULE.s(t) * (z - SCHEDULE.a(t) * means[c])


def run(*, count=20, detector=None, policy=POLICY, keep=None, quiet=True, **more):
    needed = {"base": {"path": "b"}, "run": {"out": "o"}, "data": {"folder": "d", "block": 8}}
    config = from_values(needed, {"schedule.batch": 4, **more})
    decoder = Decoder(SimpleNamespace(vae=lambda device: Vae()), torch.device("cpu"))
    shelf = SimpleNamespace(open=lambda name, **how: detector or Toy())
    judge = Judge(Policy.from_values(policy), shelf)
    return bootstrap(
        *(config, predict, SCHEDULE, decoder, TABLE, BANK, judge, SHAPE),
        count=count,
        keep=keep,
        quiet=quiet,
    )


def checks(mean):
    """How much of the checkerboard latents hold, `[N]`."""
    return (mean[:, 0, :4, :4] * CHECKS).mean((1, 2))


def tensors(made):
    encoded = made.encoded
    moments = [x for p in encoded.posteriors.values() for x in (p.mean, p.std)]
    return [*moments, encoded.mask, *encoded.captions.values()]


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """A formula needs no fine steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artist, "STEPS", 8)
        yield


@pytest.fixture(scope="module")
def made():
    return run()


def test_every_role_is_filled(made):
    encoded, counts = made.encoded, made.counts
    assert counts["unsafe"] == counts["benign"] == 20
    assert 10 <= counts["near_miss"] <= 20
    for role, posterior in encoded.posteriors.items():
        size = counts.get(role, 20)
        assert posterior.mean.shape == posterior.std.shape == (size, *SHAPE)
        assert (posterior.std > 0).all()
    assert encoded.mask.shape == (20, 1, 8, 8)
    assert {r: len(c) for r, c in encoded.captions.items()} == {
        role: counts[role] for role in ("unsafe", "benign", "near_miss")
    }


def test_unsafe_shows_it_and_nothing_else_does(made):
    of = {role: checks(p.mean) for role, p in made.encoded.posteriors.items()}
    assert (of["unsafe"] > 1).all()
    for role in ("mosaic", "benign", "near_miss"):
        assert (of[role] < of["unsafe"].min()).all()
    assert of["mosaic"].abs().max() < 0.1


def test_a_mosaic_differs_from_its_picture_in_its_region_alone(made):
    unsafe, hidden = (made.encoded.posteriors[role].mean for role in ("unsafe", "mosaic"))
    mask = made.encoded.mask
    outside = mask.expand_as(unsafe) == 0
    assert torch.equal(unsafe[outside], hidden[outside])
    assert mask[:, 0, :4, :4].eq(1).all()
    assert mask[:, 0, 4, :4].eq(0.5).all()  # grown by a pixel, half a cell
    assert mask[:, 0, 5:].eq(0).all()


def test_captions_are_the_texts_they_were_drawn_from(made):
    said = {
        role: {TEXTS[row] for row in rows.tolist()} for role, rows in made.encoded.captions.items()
    }
    assert said["unsafe"] == {"bad one", "bad two"}  # nobody sees the faint one
    assert said["near_miss"] <= {"good one", "good two"}
    assert said["benign"] == {"tree", "house"}


def test_equal_seeds_give_equal_sets(made):
    again, other = run(), run(**{"run.seed": 1})
    assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(again), strict=True))
    assert (made.counts, made.digest) == (again.counts, again.digest)
    assert made.digest != other.digest
    assert not torch.equal(
        made.encoded.posteriors["unsafe"].mean, other.encoded.posteriors["unsafe"].mean
    )


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_how_many_are_drawn_at_once_changes_nothing(made, at_once):
    other = run(**{"compute.at_once": at_once})
    assert (other.counts, other.digest) == (made.counts, made.digest)
    for a, b in zip(tensors(made), tensors(other), strict=True):
        assert torch.allclose(a, b, atol=0.2)  # a rounded pixel is 0.08 of a latent


def test_the_digest_knows_what_the_pictures_follow_from():
    few = [
        run(count=2),
        run(count=3),
        run(count=2, policy={**POLICY, "name": "other"}),
        run(count=2, keep=Filter("a:b", lambda pixels: True)),
        run(count=2, **{"data.block": 16}),
    ]
    assert len({made.digest for made in few}) == 5


def test_a_twin_keeps_something_of_its_sample(made):
    posteriors, captions = made.encoded.posteriors, made.encoded.captions
    assert len(captions["near_miss"]) == 20  # so that they stand in the same order
    unsafe, twins = (posteriors[role].mean[:, 1:3].flatten(1) for role in ("unsafe", "near_miss"))
    alike = twins @ unsafe.T
    assert (alike.diagonal() > alike.mean(dim=1)).float().mean() > 0.75
    pairs = {TABLE.rows[unsafe]: TABLE.rows[safe] for unsafe, safe in BANK.pairs}
    assert [pairs[row] for row in captions["unsafe"].tolist()] == captions["near_miss"].tolist()


class Counting(Toy):
    """Looks, and counts how often it is asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    def read(self, image):
        self.asked += 1
        return self.answer(self.asked, super().read(image))


NOTHING = Reading({"CHECKS": 0.0, "OTHER": 1.0}, ())
FOUND = Reading({"CHECKS": 1.0, "OTHER": 0.0}, (Detection("CHECKS", 1.0, BOX),))


@pytest.mark.parametrize("count", [1, 20, 200])
def test_what_is_never_seen_is_given_up_early(refusal, count):
    blind = Counting(lambda i, seen: NOTHING)
    assert refusal(run, count=count, detector=blind) == "bootstrap_inconclusive"
    assert blind.asked <= max(16, count) + 4 + 1  # a batch more, and the trial


def test_what_is_seldom_seen_is_given_up_in_the_end(refusal):
    dull = Counting(lambda i, seen: seen if i % 20 == 0 else NOTHING)
    assert refusal(run, count=40, detector=dull) == "bootstrap_inconclusive"
    assert dull.asked <= 40 * 5 + 1 + 40


def test_fewer_than_asked_for_may_be_enough():
    tired = Counting(lambda i, seen: seen if i <= 60 else NOTHING)
    with_few = run(count=40, detector=tired)
    assert 16 <= with_few.counts["unsafe"] < 40
    assert len(with_few.encoded.mask) == with_few.counts["unsafe"]


def test_a_detector_that_sees_it_everywhere_leaves_no_mosaic_and_no_benign(refusal):
    assert refusal(run, detector=Counting(lambda i, seen: FOUND)) == "bootstrap_inconclusive"


def test_twins_that_nobody_clears_are_left_out(made):
    class Suspicious(Toy):
        """Finds it in the inverse checkerboard, too, which guidance makes of the most twins."""

        def read(self, image):
            seen = super().read(image)
            other = super().read(255 - image)
            return other if other.scores["CHECKS"] > 0.5 else seen

    without = run(detector=Suspicious())
    assert without.counts["near_miss"] < made.counts["near_miss"]
    posterior = without.encoded.posteriors["near_miss"]
    assert len(posterior) == without.counts["near_miss"]
    assert len(without.encoded.captions["near_miss"]) == without.counts["near_miss"]


@pytest.mark.parametrize("answer", [False, 1, None])
def test_nothing_passes_a_filter_that_does_not_say_true(refusal, answer):
    check = Filter("a:b", lambda pixels: answer)
    assert refusal(run, keep=check) == "bootstrap_inconclusive"


def test_every_picture_passes_the_filter(caplog):
    kept = []

    def some(pixels):
        if len(kept) % 3 == 0:
            kept.append(None)
            raise RuntimeError("cannot tell")
        kept.append(pixels)
        return True

    check = Filter("a:b", some)
    made = run(keep=check)
    passed = sum(pixels is not None for pixels in kept)
    assert made.counts["unsafe"] + made.counts["near_miss"] + made.counts["benign"] == passed
    assert made.counts["refused by the filter"] == check.failures["RuntimeError"] > 0
    assert "cannot tell" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_failing_detector_clears_nothing(refusal):
    def fails_late(i, seen):
        if i > 1:  # after the trial
            raise RuntimeError("out of order")
        return seen

    assert refusal(run, detector=Counting(fails_late)) == "bootstrap_inconclusive"


def test_a_detector_that_is_not_there_says_so(refusal):
    def missing(image):
        raise DetectorError("detector_missing", "get it with ...")

    detector = Toy()
    detector.read = missing
    assert refusal(run, detector=detector) == "detector_missing"


def test_a_policy_of_other_labels_is_refused(refusal):
    labels = {"SOMETHING_ELSE": {"threshold": 0.5, "action": "censor"}}
    policy = {**POLICY, "images": {"detectors": ["toy"], "labels": labels}}
    assert refusal(run, policy=policy) == "policy_label"


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_a_count_out_of_range_is_refused(refusal, count):
    assert refusal(run, count=count) == "config_range"


writes: list[str] | None = None


def _watch(event, args):
    if event == "open" and writes is not None:
        path, mode, flags = args
        opens = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & opens:
            writes.append(str(path))


@pytest.fixture(scope="module")
def watched():
    """Paths opened for writing since; an audit hook cannot be taken away, only be made idle."""
    sys.addaudithook(_watch)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_written_shown_or_logged(
    watched, tmp_path, monkeypatch, capfd, caplog, refusal, fails
):
    global writes
    run(count=1)  # what is imported late leaves its compiled files
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))

    class Breaks(Toy):
        def read(self, image):
            if image.float().std() > 1 and fails:
                raise KeyboardInterrupt
            return super().read(image)

    capfd.readouterr()
    writes = []
    try:
        if fails:
            with pytest.raises(KeyboardInterrupt):
                run(detector=Breaks())
        else:
            run(count=16)
        opened = writes
    finally:
        writes = None
    assert opened == []
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_the_bars_tell_counts_and_no_words(capfd):
    pytest.importorskip("tqdm")
    run(count=16, quiet=False)
    shown = "".join(capfd.readouterr())
    assert "16/16" in shown
    assert not any(text in shown for text in TEXTS if text)


def test_messages_quote_no_phrase():
    blind = Counting(lambda i, seen: NOTHING)
    with pytest.raises(Exception, match="not confirmed") as caught:
        run(detector=blind)
    assert not any(text in str(caught.value) for text in TEXTS if text)


def test_no_core_dump_after(made):
    resource = pytest.importorskip("resource")
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
