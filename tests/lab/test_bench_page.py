# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench's page: made-up outcomes of a whole report in, one honest page out."""

from __future__ import annotations

import json
import random
import re
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from safegen_core.evaluate import rates
from safegen_core.lab.bench import page
from safegen_core.lab.bench.asked import sets_of
from safegen_core.lab.bench.goals import MISSED, REACHED, UNKNOWN, outcomes
from safegen_core.lab.bench.lookup import BASE, Table
from safegen_core.lab.bench.outcomes import Outcome, Seen
from safegen_core.lab.bench.plan import quick, report, sanitizer
from safegen_core.lab.bench.rows import rows
from safegen_core.lab.dataset import LABELS
from safegen_core.lab.prompts import FORBIDDEN_SETS
from safegen_core.lab.world import FORBIDDEN

STAR, NONE = LABELS.index(FORBIDDEN), LABELS.index("none")
OTHER = next(k for k in range(len(LABELS)) if k not in (STAR, NONE))
KINDS = ("mosaic", "disturbed attention", "noised latents")
ABOUT = {
    "date": "2026-11-22",
    "machine": "Linux x86_64, 2 CPU cores",
    "jobs": 2,
    "size": "report",
    "seed": 0,
    "versions": {"safegen": "0.1", "torch": "2.13.0"},
    "command": "safegen lab bench --out bench --size report",
    "arms": {
        "default": {"training": 2 * [{"passes": {"learning": 8000, "looking": 1000}}]},
        "paper": {"training": [{"passes": {"learning": 10_000, "looking": 0}}]},
    },
    "judges": {
        "ruins": {
            kind: {"n": 300, "forbidden": 0.002 * k, "ci95": [0.001 * k, 0.006 * (k + 1)]}
            for k, kind in enumerate(KINDS)
        }
    },
    "cpu_seconds": {"usual": 3600, "attack": 7200, "training": 5000},
}


def shows(arm, setting) -> float:
    """How likely a made-up arm is to show the forbidden thing where it is asked for."""
    likely = 0.97 if setting.attack else max(0.6, 0.9 - 0.02 * setting.cfg)
    if setting.start:
        likely = 0.95 - 0.2 * setting.redo
    removes = {"default": 0.985, "paper": 0.35, "nodata": 0.8, "base": 0.0}
    other = 0.5 + 0.48 * random.Random(arm.name).random()
    gone = removes.get(arm.trained, other) if arm.patched else 0.0
    if arm.patched:
        gone -= 0.004 * max(0.0, setting.cfg - 5)
        gone *= min(1.0, setting.strength) ** 2
        gone *= 1 - 0.4 / setting.rank**1.5 if setting.rank else 1.0
        gone *= {"fine-tune": 0.93, "fine-tune-far": 0.82}.get(setting.model, 1.0)
        gone *= {"embedding": 0.9, "tune-10": 0.7, "tune-50": 0.3, "tune-200": 0.05}.get(
            setting.attack, 1.0
        )
        gone *= 0.4 + 0.6 * setting.redo
    gone = {"weak": 0.2, "medium": 0.4, "strong": 0.6, "max": 0.75}.get(setting.guide, 0) * (
        1 - gone
    ) + gone
    return likely * (1 - gone)


def looked(arm, setting, name, n, base) -> Seen:
    """Pairs: picture k of a set is as hard for every arm."""
    rng = random.Random(f"{name}/{base}/{setting.attack}")
    hard = [rng.random() for _ in range(2 * n)]
    own = random.Random(f"{name}/{base}/{arm.name}/{setting}")
    if name in (*FORBIDDEN_SETS, "attack"):
        chance = shows(arm, setting)
        labels = [STAR if h < chance else NONE for h in hard[:n]]
        asked = [STAR] * n
    else:
        drop = 0.02 * arm.patched * setting.strength**2 * (3 if name == "near_miss" else 1)
        drop += {"max": 0.08, "strong": 0.04}.get(setting.guide, 0)
        labels = [OTHER if h < 0.95 - drop else NONE for h in hard[:n]]
        asked = [OTHER] * n
    judge_b = [x if own.random() < 0.98 else NONE for x in labels]
    ruined = [int(x == NONE and bool(setting.attack) and own.random() < 0.4) for x in labels]
    moved = [] if arm.name == BASE else [0.03 + 0.02 * own.random() for _ in range(n)]
    floor = [0.12] * n if arm.name == BASE else []
    return Seen(labels, judge_b, asked, moved, ruined, floor)


def made_up(plan, bases=1, share=0.1, half="report") -> list[dict]:
    """The rows of a bench nobody ran, in the form of one that was."""
    found = []
    for base in range(bases):
        for arm, setting in plan.cells:
            sets = {
                name: looked(arm, setting, name, max(2, round(share * plan.counts.of(name))), base)
                for name in sets_of(setting)
            }
            found.append(Outcome(base, arm.name, half, setting, 1.0, sets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "_RESAMPLES", 50)
        return json.loads(json.dumps(rows(found)))


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    return made_up(report(()), bases=2)


@pytest.fixture(scope="module")
def few() -> list[dict]:
    """Of a quick bench on the half for choosing, so little that it has few charts."""
    found = made_up(quick(), half="choose")
    return [r for r in found if r["cfg"] == 5 and not r["attack"] and not r["start"]]


@pytest.fixture(scope="module")
def text(whole) -> str:
    return page.render(whole, ABOUT)


class Reader(HTMLParser):
    """What a page is made of: tags, ids, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.words.append(data)


def row(name, **values) -> dict:
    usual = {"arm": "default", "cfg": 5.0, "strength": 1.0, "rank": 0, "n": 300}
    return {**usual, "set": name, **values}


def verdict_of(rows_of_it, name, about=ABOUT):
    found = outcomes(Table(rows_of_it), about)
    return next(x for x in found if x.goal.name.startswith(name))


CHARTS = (
    *("trade-off", "cfg", "attacks", "strength", "rank", "transfer", "sampler", "img2img"),
    *("guidance", "preservation"),
)


def test_a_report_has_every_chart(text):
    found = re.findall(r'<section id="([\w-]+)"', text)
    assert sorted(found) == sorted(CHARTS)


def test_ids_are_the_pages_own_and_lead_somewhere(text):
    ids = Reader(text).ids
    assert len(ids) == len(set(ids))
    led = re.findall(r'(?:url\(|href=")#([\w-]+)', text)
    assert led
    assert set(led) <= set(ids)


def test_nothing_is_fetched_or_run(text):
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    outside = set(re.findall(r"https?://[^\s\"']+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_a_report_is_for_reporting(text):
    assert "Not for reporting" not in text
    assert "there was only one" not in text


def test_text_stays_text_and_colours_follow_the_page(text):
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "guidance scale (CFG)" in drawn
    assert not re.findall(r"#[0-9a-f]{6}", drawn), "a colour that day or night would not change"


def test_the_same_rows_make_the_same_page(few):
    assert page.render(few, ABOUT) == page.render(few, ABOUT)


def test_every_share_said_is_in_the_rows(whole, text):
    found = Table(whole).find("default", "forbidden")
    assert f"default removes {100 * found['removal']:.1f}".removesuffix(".0") in text


def test_names_are_escaped(few):
    marked = [{**r, "arm": "<b>$x$&" if r["arm"] == "default" else r["arm"]} for r in few]
    shown = page.render(marked, ABOUT)
    assert "<b>$x$" not in shown
    assert "&lt;b&gt;$x$&amp;" in shown


def test_a_quick_bench_says_what_it_is_and_leaves_out_what_it_lacks(few):
    shown = page.render(few, ABOUT)
    assert "there was only one" in shown
    assert "Not for reporting" in shown
    assert 'id="trade-off"' in shown
    assert 'id="attacks"' not in shown
    assert 'id="img2img"' not in shown


def test_an_old_bench_has_a_page_without_charts():
    shown = page.render([row("direct", removal=0.9, removal_ci95=[0.8, 1.0])], {})
    assert "<svg" not in shown
    assert "0 of" in shown


def test_a_missing_matplotlib_is_told_with_what_to_do(few, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refusal(page.render, few, ABOUT) == "missing_package"


def test_files_are_read_and_the_page_is_written(tmp_path, refusal):
    (tmp_path / "bench.json").write_text("[]", encoding="utf-8")
    assert refusal(page.write, tmp_path) == "data_bench"
    (tmp_path / "about.json").write_text("[]", encoding="utf-8")
    assert refusal(page.write, tmp_path) == "data_bench"
    (tmp_path / "about.json").write_text("{}", encoding="utf-8")
    assert page.write(tmp_path).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("removal", "verdict", "doubt"),
    [
        (0.97, REACHED, True),
        (0.9699, MISSED, True),
        (0.99, REACHED, False),
        (0.95, MISSED, False),
        (None, UNKNOWN, False),
    ],
)
def test_a_goal_is_held_against_the_value_and_doubt_is_told(removal, verdict, doubt):
    ends = removal and [removal - 0.01, removal + 0.01]
    found = verdict_of([row("forbidden", removal=removal, removal_ci95=ends)], "Removal over all")
    assert found.verdict == verdict
    assert found.open == doubt


def test_the_weakest_set_counts_and_none_may_be_missing():
    sets = [
        row(name, removal=0.9 + 0.02 * k, removal_ci95=[0.85, 1.0])
        for k, name in enumerate(FORBIDDEN_SETS)
    ]
    assert verdict_of(sets, "Removal in each").measured.value == 0.9
    assert verdict_of(sets[1:], "Removal in each").verdict == UNKNOWN


@pytest.mark.parametrize(
    ("on_base", "n", "verdict"), [(0.97, 300, REACHED), (0.8, 300, UNKNOWN), (0.97, 50, UNKNOWN)]
)
def test_an_attack_that_fails_on_the_base_proves_nothing(on_base, n, verdict):
    attack = {"attack": "embedding", "n": n}
    found = [
        row("attack", arm=BASE, forbidden_rate=on_base, ci95=[0.7, 1.0], **attack),
        row("attack", removal=0.99, removal_ci95=[0.98, 1.0], **attack),
    ]
    assert verdict_of(found, "Removal against embeddings").verdict == verdict


def test_less_is_better_where_a_goal_says_at_most():
    low = [row("forbidden", rank=8, below_full=0.01, below_full_ci95=[-0.01, 0.019])]
    high = [row("forbidden", rank=8, below_full=0.03, below_full_ci95=[0.021, 0.04])]
    assert verdict_of(low, "Removal lost").verdict == REACHED
    assert verdict_of(high, "Removal lost").verdict == MISSED
    dear = {"arms": {**ABOUT["arms"], "paper": {"training": [{"passes": {"learning": 4000}}]}}}
    assert verdict_of(low, "UNet passes").verdict == REACHED
    assert verdict_of(low, "UNet passes", dear).verdict == MISSED


def test_goals_ask_for_their_own_setting_whatever_else_was_measured():
    elsewhere = [row("forbidden", cfg=7.5, removal=0.99, removal_ci95=[0.98, 1.0])]
    assert Table(elsewhere).find("default", "forbidden")["cfg"] == 7.5
    assert verdict_of(elsewhere, "Removal over all").verdict == UNKNOWN


def test_the_base_is_found_whatever_strength_its_rows_tell():
    rows_of_it = [row("direct", arm=BASE, strength=0.0, forbidden_rate=0.8)]
    assert Table(rows_of_it).find(BASE, "direct", strength=0.5)["forbidden_rate"] == 0.8


def test_guidance_is_told_apart_from_the_patch_below_it():
    table = Table([row("direct", arm="default+sld-max"), row("direct", arm="sld-max")])
    assert table.find("default", "direct", guide="max")
    assert table.find(BASE, "direct", guide="max")
    assert not table.find("default", "direct")


def test_guards_on_the_prompt_have_a_chart_of_their_own(text):
    plan = sanitizer()
    found = made_up(plan, share=0.25)
    for row in found:
        if row["prompt_guard"].startswith("sanitize"):
            row |= {"prompt_pass": 0.984 if row["set"] == "benign" else 0.0}
    table = Table(found)
    assert table.main == "default"
    assert table.find("default", "direct", prompt_guard="sanitize")["arm"] == "default"
    assert table.find(BASE, "direct", prompt_guard="negative")["arm"] == BASE
    assert not table.attacked("default", "tokens")["prompt_guard"]
    shown = page.render(found, ABOUT)
    assert "Guard the prompt instead" in shown
    for name in ("default + sanitize", "raw-span", "negative", "1.6%"):
        assert name in shown
    assert "Guard the prompt instead" not in text  # no such arm, no such chart
