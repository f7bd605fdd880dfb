# SPDX-License-Identifier: GPL-3.0-or-later
"""Cards change how work is done, never what is learned; the greatest that fits is chosen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.errors import ConfigError
from safegen_core.train.cards import MARGIN, cards, choose, read_card, sentence
from safegen_core.train.config_file import from_values

GIB = 2**30
COUNTED = Path(__file__).parents[2] / "docs" / "bench" / "train.json"
PLACES = {"base.path": "base", "run.out": "run"}
FAMILIES = ("sd1", "sd2", "sdxl")
OF = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
NAMES = [card.name for card in cards()]

free_bytes = st.integers(0, 100 * GIB)


class TestShipped:
    def test_these_are_promised(self):
        promised = {"sd15-6gb", "sd15-8gb", "sd15-12gb", "sdxl-8gb", "sdxl-12gb", "sdxl-24gb"}
        assert promised | {"h100"} == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_card_leaves_the_recipe_alone(self, name):
        card = read_card(name)
        plain, fitted = (from_values({}, PLACES, "default", c).to_values() for c in (None, card))
        changed = {
            f"{group}.{key}"
            for group, keys in fitted.items()
            for key, value in keys.items()
            if plain[group][key] != value
        }
        assert all(key.startswith("compute.") or key == "delta.rank" for key in changed)

    @pytest.mark.parametrize("name", NAMES)
    def test_it_fits_the_memory_in_its_name(self, name):
        """For the family in it; SD 2 is told by its needs alone which cards of SD 1 it may take."""
        card, told = read_card(name), re.fullmatch(r"(sd15|sdxl)-(\d+)gb", name)
        families, memory = ([OF[told[1]]], int(told[2])) if told else (card.families, 80)
        # half a GiB for the screen and the CUDA context, which is not counted as free
        assert all(card.needs[family] + MARGIN <= (memory - 0.5) * GIB for family in families)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_who_has_more_memory_needs_more(self, family):
        """By their names, which say how much there is; no two cards need the same."""

        def named(card):
            told = re.search(r"(\d+)gb$", card.name)
            return int(told[1]) if told else 80

        by_name = sorted((card for card in cards() if family in card.needs), key=named)
        needs = [card.needs[family] for card in by_name]
        assert needs == sorted(set(needs))

    @pytest.mark.parametrize("name", NAMES)
    def test_what_it_needs_was_counted(self, name):
        """The figures are those of docs/bench, by the settings the card has now; the greater one
        of the recipes with pictures and without."""
        card = read_card(name)
        records = json.loads(COUNTED.read_text(encoding="utf-8"))["memory"]["records"]
        found = {r["model"]: r for r in records if r["card"] == name}
        assert {OF[model] for model in found} == set(card.families)
        for model, record in found.items():
            assert record["values"] == card.values
            recipes = {preset: told["needs"] for preset, told in record["recipes"].items()}
            assert set(recipes) == {"default", "nodata"}
            assert record["needs"] == max(recipes.values())
            assert card.needs[OF[model]] == -(-record["needs"] // 2**20) * 2**20


class TestChoose:
    @given(st.sampled_from(FAMILIES), free_bytes)
    def test_it_fits_and_nothing_greater_does(self, family, free):
        card = choose(family, free)
        fitting = [c for c in cards() if family in c.needs and c.wants(family) + MARGIN <= free]
        assert (card is None) == (not fitting)
        if card is not None:
            assert card.wants(family) == max(c.wants(family) for c in fitting)

    @given(st.sampled_from(FAMILIES), free_bytes, free_bytes)
    def test_more_memory_never_means_a_smaller_card(self, family, one, other):
        small, large = (choose(family, free) for free in sorted((one, other)))
        if small is not None:
            assert large is not None
            assert large.wants(family) >= small.wants(family)

    def test_a_family_without_cards(self):
        assert choose("lab", 100 * GIB) is None

    def test_a_gpu_of_80_gb(self):
        assert {str(choose(family, 79 * GIB)) for family in FAMILIES} == {"h100"}


class TestReadCard:
    def test_a_mistyped_name_is_answered_with_the_nearest(self):
        with pytest.raises(ConfigError, match="did you mean sdxl-12gb") as refused:
            read_card("sdxl-12g")
        assert refused.value.code == "config_unknown"

    @pytest.mark.parametrize("name", ["", "../presets/default", "sd15-6gb.toml", "\0"])
    def test_no_path_gets_through(self, name):
        with pytest.raises(ConfigError):
            read_card(name)


class TestSentence:
    def test_a_card_and_what_it_does(self):
        told = sentence(read_card("sdxl-12gb"), 12 * GIB, "NVIDIA X")
        assert told.startswith("12.0 GB free on NVIDIA X: card sdxl-12gb (rank 32, one pair at a")
        assert "recomputed activations" in told

    def test_8_bits_are_told(self):
        assert "8 bits" in sentence(read_card("sdxl-8gb"), 8 * GIB, "NVIDIA X")

    @pytest.mark.parametrize("family", FAMILIES)
    def test_out_of_reach_names_the_least(self, family):
        told = sentence(None, GIB, "NVIDIA X", family)
        least = min(c.wants(family) for c in cards() if family in c.needs) + MARGIN
        assert "out of reach" in told
        assert f"{least / GIB:.1f} GB" in told

    def test_a_family_nobody_knows(self):
        assert "no card fits" in sentence(None, 99 * GIB, "NVIDIA X", "")
