# SPDX-License-Identifier: GPL-3.0-or-later
"""What the training bench counts and concludes, on the lab's miniature."""

from __future__ import annotations

import dataclasses
import gc

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from benchmarks.train_bench import flops, memory, report, timing  # noqa: E402
from benchmarks.train_bench.models import MODELS  # noqa: E402
from benchmarks.train_bench.official import ACCUMULATED, Official  # noqa: E402

LAB = MODELS["lab"]
CPU = torch.device("cpu")


@pytest.fixture
def official():
    return Official(LAB, CPU, None)


class TestLedger:
    def test_the_peak_is_what_lived_at_once(self):
        with memory.Ledger() as ledger, torch.device("meta"):
            one = torch.zeros(2**20)
            two = one * 2
            assert ledger.now == 2 * 4 * 2**20
            del one
            three = two.view(2**10, 2**10)  # the same storage
            assert ledger.now == 4 * 2**20
            two.add_(1)
            del two, three
        gc.collect()
        assert ledger.now == 0
        assert ledger.peak == 2 * 4 * 2**20

    def test_what_autograd_keeps_counts(self):
        with memory.Ledger() as ledger, torch.device("meta"):
            x = torch.zeros(2**20, requires_grad=True)
            y = x.exp().exp().sum()  # each exp keeps its result
            assert ledger.now == 3 * 4 * 2**20 + 512
            y.backward()
        assert x.grad is not None

    def test_tensors_with_data_are_not_its_business(self):
        with memory.Ledger() as ledger:
            torch.zeros(100)
        assert ledger.peak == 0


@pytest.fixture(scope="module")
def counted():
    def of(preset="default", **compute):
        return memory.measure(LAB, {"compute": compute}, resolution=256, preset=preset)

    return {
        "plain": of(at_once=1),
        "recomputed": of(at_once=1, checkpointing=True),
        "two": of(at_once=2),
        "bytes": of(at_once=1, adam="8bit"),
        "words": of("nodata", at_once=1),
    }


class TestMemory:
    def test_weights_are_what_they_are(self, counted):
        unet = LAB.unet()
        at_least = 2 * sum(p.numel() for p in unet.parameters())  # bf16
        tensors = len(list(unet.parameters()))
        assert at_least <= counted["plain"].weights <= at_least + 512 * tensors

    def test_every_saving_saves(self, counted):
        assert counted["recomputed"].step < counted["plain"].step < counted["two"].step
        assert counted["bytes"].trained < counted["plain"].trained

    def test_needs_are_more_than_any_peak(self, counted):
        for found in counted.values():
            assert found.needs > found.peak >= max(found.step, found.images, found.texts)

    def test_words_alone_ask_the_student_more_often(self, counted):
        """Three rows a pair instead of two: half as much again of what a step adds."""
        added = {
            name: counted[name].step - counted[name].weights - counted[name].trained
            for name in ("plain", "words")
        }
        assert 1.2 < added["words"] / added["plain"] < 1.8
        assert counted["words"].weights == counted["plain"].weights
        assert counted["words"].trained == counted["plain"].trained

    def test_each_recipe_has_its_own_beginning(self, counted):
        words, plain = counted["words"], counted["plain"]
        assert words.imagining > words.weights
        assert words.imagining < words.step  # nothing is kept for a way back
        assert (words.images, plain.imagining) == (0, 0)

    def test_sampling_counts_where_it_is_the_peak(self, counted):
        words = dataclasses.replace(counted["words"], imagining=2 * counted["words"].peak)
        assert words.peak == words.imagining

    def test_8_bits_and_recomputation_go_together(self, counted):
        """A frozen weight must be the same tensor when a block is computed for the second time."""
        compute = {"at_once": 1, "checkpointing": True, "storage": "fp8"}
        found = memory.measure(LAB, {"compute": compute, "delta": {"rank": 4}}, resolution=256)
        assert found.weights < counted["recomputed"].weights

    def test_attention_is_as_before(self):
        before = torch.nn.functional.scaled_dot_product_attention
        with memory.fused_attention():
            assert torch.nn.functional.scaled_dot_product_attention is not before
            x = torch.zeros(1, 2, 64, 8, device="meta")
            with memory.Ledger() as ledger:
                out = torch.nn.functional.scaled_dot_product_attention(x, x, x)
            assert out.shape == x.shape
            assert ledger.peak < 4 * 2 * 64 * 64  # less than the matrix of all with all
        assert torch.nn.functional.scaled_dot_product_attention is before


class TestFlops:
    def test_the_official_loop_does_more(self):
        stages = flops.of_official(LAB)
        forward = [count for name, count in stages.items() if name.startswith("UNet forward")]
        assert len(forward) == 3
        assert len(set(forward)) == 1  # the unused one costs what the others do
        ours = flops.of_ours(LAB, "paper")
        assert 2 * forward[0] < ours < sum(stages.values())

    def test_a_teacher_costs_a_forward_pass(self):
        paper, default = (flops.of_ours(LAB, preset) for preset in ("paper", "default"))
        forward = flops.of_official(LAB)["UNet forward, benign"]
        assert default - paper == pytest.approx(forward, rel=0.02)


class TestOfficial:
    def test_a_step_trains_self_attention_and_averages_everything(self, official):
        before = {n: p.detach().clone() for n, p in official.unet.named_parameters()}
        shadow = [tensor.clone() for tensor in official.shadow]
        assert np.isfinite(official.step())
        for name, parameter in official.unet.named_parameters():
            assert torch.equal(before[name], parameter) != ("attn1" in name)
        assert len(shadow) == len(before)
        assert any(not torch.equal(a, b) for a, b in zip(shadow, official.shadow, strict=True))

    def test_eager_attention_is_attention(self, official):
        from diffusers.models.attention_processor import AttnProcessor2_0

        z, t = torch.randn(1, LAB.unet().config["in_channels"], 8, 8), torch.tensor([500])
        kwargs = {"encoder_hidden_states": torch.randn(1, LAB.tokens, 64)}
        with torch.no_grad():
            eager = official.unet(z, t, return_dict=False, **kwargs)[0]
            official.unet.set_attn_processor(AttnProcessor2_0())
            fused = official.unet(z, t, return_dict=False, **kwargs)[0]
        torch.testing.assert_close(eager, fused, rtol=1e-4, atol=1e-4)

    def test_stages_add_up_to_the_step(self, official):
        clock = iter(range(10**6))
        official.meter = lambda: next(clock)
        official.step()
        assert sum(official.spent.values()) == len(official.spent) + (ACCUMULATED - 1) * sum(
            name not in ("clip, all parameters", "AdamW", "EMA, all parameters")
            for name in official.spent
        )


@pytest.mark.slow
def test_both_arms_are_timed_in_turns(tmp_path):
    compute = {"compute": {"device": "cpu"}}
    record = timing.compare(LAB, tmp_path, compute, ["safegen", "official"], 2, "sdpa")
    assert len(record["safegen"]["seconds_per_pair"]) == 2
    assert len(record["official"]["seconds_per_pair"]) == 2
    told = timing.summary(record)
    middle, low, high = told["ratio"]
    assert low <= middle <= high
    made = {"date": "", "hardware": "", "threads": 1, "system": "", "packages": {"torch": "2"}}
    record |= {"card": "none", "attention": "sdpa", "summary": told, "made": made}
    record |= {"matmul_flops": 1e12, "pair_flops": 1e9}
    text = report.markdown({"timing": {"lab": record}})
    assert f"{middle:.2f} ({low:.2f} to {high:.2f})" in text


def test_the_report_tells_both_recipes(counted):
    recipes = {
        preset: {"needs": found.needs} | {key: getattr(found, key) for key in memory.PARTS}
        for preset, found in (("default", counted["plain"]), ("nodata", counted["words"]))
    }
    record = {"card": "none", "model": "lab", "side": 256, "values": {}, "recipes": recipes}
    record["needs"] = counted["words"].needs
    text = report.markdown({"memory": {"made": {"date": ""}, "records": [record]}})
    head, _, row = (line.split(" | ") for line in text.splitlines()[-3:])
    assert len(head) == len(row)
    told = dict(zip(head, row, strict=True))
    for preset in memory.RECIPES:
        assert told[f"step's peak, `{preset}`"] == f"{recipes[preset]['step'] / 2**30:.2f}"
        assert told[f"needs, `{preset}`"] == f"{recipes[preset]['needs'] / 2**30:.2f}"
    assert told["VAE, before"] == f"{counted['plain'].images / 2**30:.2f}"
    assert told["imagining, before"] == f"{counted['words'].imagining / 2**30:.2f}"


def test_equal_arms_have_a_ratio_of_one():
    seconds = {"seconds_per_pair": list(np.random.default_rng(0).lognormal(0, 0.1, 40))}
    assert timing.summary({"safegen": seconds, "official": seconds})["ratio"] == [1, 1, 1]


def test_one_arm_has_no_ratio():
    assert timing.summary({"safegen": {"seconds_per_pair": [1.0, 3.0]}}) == {"safegen": 2.0}
