# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts on a minimal host, whose encoder knows what "zorb" means."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from safegen_core.errors import SanitizeError
from safegen_core.sanitize.shelf import Shelf
from safegen_webui import jobs, profiles, prompts, wraps
from safegen_webui.protection import NOTHING, Protection
from tests.safegen_webui.host import conds as processing
from tests.safegen_webui.host import prompt_parser
from tests.safegen_webui.host import text as host
from tests.sanitize.toy import toy_bank

GOOD, BAD = "a tree person by the sea", "a zorb person by the sea"
NEVER = "a zorb child by the sea"
MODELS = (host.Sd1, host.Sdxl, host.ForgeSdxl)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where profiles are kept from one test to the next: each is fitted once."""
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(params=MODELS, ids=[model.__name__ for model in MODELS])
def kind(request):
    return request.param


@pytest.fixture
def webui(kind, kept, monkeypatch, tmp_path):
    """A host with the wrap in place."""
    model = kind()
    found = host.installed(monkeypatch, model, tmp_path)
    module = ModuleType("modules.processing")

    class Fresh(processing.StableDiffusionProcessing):
        cached_uc, cached_c, cached_hr_c = [None, None], [None, None], [None, None]
        get_conds_with_caching = processing.StableDiffusionProcessing.get_conds_with_caching

    module.StableDiffusionProcessing = found.Request = Fresh
    monkeypatch.setitem(sys.modules, "modules.processing", module)
    monkeypatch.setattr(wraps, "_slots", {})
    monkeypatch.setattr(profiles, "SHELF", Shelf(lambda: kept, list, toy_bank))
    wraps.install(prompts.WRAPS)
    found.model = model
    return found


def rows(cond):
    return cond["crossattn"] if isinstance(cond, dict) else cond


DEFAULT = Protection()


def drawn(webui, *texts, protection=DEFAULT, **fields):
    """A request under a protection; the request, its positive conditioning, and its job."""
    p = webui.Request(*texts, **fields)
    with jobs.begun(protection) as job:
        p.setup_conds()
        if p.hr_prompts:
            p.calculate_hr_conds()
    return p, p.c, job


def plain(webui, *texts, **fields):
    return drawn(webui, *texts, protection=NOTHING, **fields)[1]


def cond_of(given, number=0, part=0, entry=0):
    return given.batch[number][part].schedules[entry].cond


def same(one, other):
    return torch.equal(rows(one), rows(other))


def code_of(call, *args, **kwargs):
    with pytest.raises(SanitizeError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_a_harmless_prompt_is_handed_on_as_the_very_object(webui):
    p, given, job = drawn(webui, GOOD)
    assert given is webui.Request.cached_c[1]
    assert p.uc is webui.Request.cached_uc[1]
    assert job.prompts[GOOD].verdict == "pass"


def test_a_cleaned_prompt_is_a_copy_beside_the_cache(webui):
    before = copy.deepcopy(rows(cond_of(plain(webui, BAD))))
    cached = webui.Request.cached_c[1]
    _, given, job = drawn(webui, BAD)
    assert webui.Request.cached_c[1] is cached
    assert given is not cached
    assert torch.equal(rows(cond_of(cached)), before)
    assert not same(cond_of(given), cond_of(cached))
    assert job.prompts[BAD].verdict in ("cleaned", "anchored")
    assert rows(cond_of(given)).shape == before.shape
    assert given.shape == cached.shape
    # off again: the host's own, bit for bit
    assert plain(webui, BAD) is cached


def test_what_comes_out_of_the_cache_is_judged_too(webui):
    plain(webui, NEVER)
    assert code_of(drawn, webui, NEVER) == "sanitize_minors"


def test_what_a_cleaned_prompt_says_scores_below_the_threshold(webui):
    from safegen_core.sanitize.sanitizer import PRESETS
    from safegen_webui.text_encoder import WebuiEncoder

    _, given, _ = drawn(webui, BAD)
    encoder = WebuiEncoder(webui.model)
    reading = encoder.read(GOOD, cond_of(given), plain=True)  # as many words
    profile = profiles.find(encoder, reading.encodings)
    assert profile.score(reading.encodings).score < PRESETS["default"].threshold


def test_a_refused_prompt_makes_no_conditioning(webui):
    assert code_of(drawn, webui, NEVER) == "sanitize_minors"
    assert jobs.last().prompts[NEVER].verdict == "refused"


@pytest.mark.parametrize("preset", ["gentle", "default", "strict"])
def test_minors_are_refused_in_every_preset(webui, preset):
    assert code_of(drawn, webui, NEVER, protection=Protection(prompts=preset)) == "sanitize_minors"


def test_off_touches_nothing(webui):
    calls = [tower.network.calls for tower in webui.model.towers]
    given = plain(webui, NEVER)
    assert given is webui.Request.cached_c[1]
    # both prompts were encoded by the host, and nothing else was
    assert [t.network.calls - n for t, n in zip(webui.model.towers, calls, strict=True)] == [
        2
    ] * len(calls)


def test_between_requests_the_servers_own_protection_stands(webui, monkeypatch):
    settings = ModuleType("safegen_webui.settings")
    settings.standing = lambda: Protection(prompts="strict")
    monkeypatch.setitem(sys.modules, "safegen_webui.settings", settings)
    monkeypatch.setattr("safegen_webui.settings", settings, raising=False)
    assert jobs.current() is None
    assert code_of(webui.Request(NEVER).setup_conds) == "sanitize_minors"
    settings.standing = lambda: NOTHING
    webui.Request(NEVER).setup_conds()


def test_every_prompt_of_a_batch_and_every_part_of_it(webui):
    _, given, job = drawn(webui, GOOD, f"{GOOD} AND {BAD}", f"{GOOD} AND a lamp")
    cached = webui.Request.cached_c[1]
    assert given.batch[0] is cached.batch[0]
    assert given.batch[2] is cached.batch[2]
    assert given.batch[1][0] is cached.batch[1][0]
    assert not same(cond_of(given, 1, 1), cond_of(cached, 1, 1))
    assert given.batch[1][1].weight == cached.batch[1][1].weight
    assert {text.strip() for text in job.prompts} == {GOOD, BAD, "a lamp"}


def test_prompt_editing_entry_by_entry(webui):
    _, given, job = drawn(webui, "a [tree:zorb:0.5] person by the sea")
    cached = webui.Request.cached_c[1]
    first, second = given.batch[0][0].schedules
    assert first is cached.batch[0][0].schedules[0]
    assert second.end_at_step == 4
    assert not same(second.cond, cached.batch[0][0].schedules[1].cond)
    assert set(job.prompts) == {GOOD, BAD}


def test_old_timelines_are_read_as_the_host_does(webui):
    webui.opts.use_old_scheduling = True
    assert code_of(drawn, webui, "a [tree:zorb:0.5] child") == "sanitize_minors"


def test_turns_are_judged_once_each(webui):
    _, given, job = drawn(webui, "a [tree|zorb] person by the sea", steps=6)
    assert len(given.batch[0][0].schedules) == 6
    assert set(job.prompts) == {GOOD, BAD}
    cached = webui.Request.cached_c[1].batch[0][0].schedules
    kept = [a is b for a, b in zip(given.batch[0][0].schedules, cached, strict=True)]
    assert kept == [True, False] * 3


def test_emphasis_does_not_hide_a_word_and_stays_on_the_others(webui):
    weak = "a (zorb:0.2) person by the (sea:1.4)"
    _, given, job = drawn(webui, weak)
    cached = webui.Request.cached_c[1]
    assert job.prompts[weak].verdict in ("cleaned", "anchored")
    assert [w.weight for w in job.prompts[weak].words][-1] == 1.4
    assert not same(cond_of(given), cond_of(cached))


def test_a_word_in_a_later_chunk(webui):
    far = f"{'calm river ' * 40} {BAD}"
    _, given, job = drawn(webui, far)
    cached = webui.Request.cached_c[1]
    assert job.prompts[far].verdict in ("cleaned", "anchored")
    assert torch.equal(rows(cond_of(given))[:77], rows(cond_of(cached))[:77])
    assert not same(cond_of(given), cond_of(cached))


@pytest.mark.parametrize("breaks", ["calm river BREAK a zorb person", "a zorb person BREAK calm"])
def test_break(webui, breaks):
    _, given, _ = drawn(webui, breaks)
    assert not same(cond_of(given), cond_of(webui.Request.cached_c[1]))


def test_a_mention_counts_in_any_part_and_in_either_pass(webui):
    gentle = Protection(prompts="gentle")
    assert code_of(drawn, webui, f"a child AND {BAD}", protection=gentle) == "sanitize_minors"
    assert code_of(drawn, webui, "a [child:zorb:0.5] person") == "sanitize_minors"
    hires = {"hr_prompts": ["a child"]}
    assert code_of(drawn, webui, BAD, protection=gentle, **hires) == "sanitize_minors"
    hires = {"hr_prompts": [BAD]}
    assert code_of(drawn, webui, "a child", protection=gentle, **hires) == "sanitize_minors"


def test_a_mention_in_another_picture_of_the_batch_does_not(webui):
    child = "a photo of a calm child house"
    _, _, job = drawn(webui, child, BAD)
    assert job.prompts[child].verdict == "pass"
    assert job.prompts[BAD].verdict in ("cleaned", "anchored")


def test_hires_has_its_own_prompt(webui):
    p, given, job = drawn(webui, GOOD, hr_prompts=[BAD])
    assert given is webui.Request.cached_c[1]
    assert not same(cond_of(p.hr_c), cond_of(webui.Request.cached_hr_c[1]))
    assert set(job.prompts) == {GOOD, BAD}


def test_a_text_is_judged_once_a_job(webui, monkeypatch):
    judged = []
    judge = prompts._Conds._judge

    def seen(self, text, *args):
        judged.append(text)
        return judge(self, text, *args)

    monkeypatch.setattr(prompts._Conds, "_judge", seen)
    p, _, _ = drawn(webui, BAD, BAD, hr_prompts=[BAD, BAD], steps=3)
    assert cond_of(p.c) is cond_of(p.c, 1)
    sizes = 2 if isinstance(cond_of(p.c), dict) else 1  # SDXL is told another in the second pass
    assert judged == [BAD] * sizes
    drawn(webui, BAD)
    assert judged == [BAD] * (sizes + 1)


def test_a_refiner_is_judged_by_its_own_profile(webui):
    drawn(webui, GOOD)
    webui.shared.sd_model = host.Refiner()
    _, given, job = drawn(webui, BAD)
    assert {whole.encoder for whole in job.prompts[BAD].whole} == {"g"}
    assert not same(cond_of(given), cond_of(webui.Request.cached_c[1]))


def uc_touched(webui, *texts, **fields):
    p, _, _ = drawn(webui, *texts, negative=BAD, **fields)
    return p.uc is not webui.Request.cached_uc[1]


def test_a_negative_prompt_is_left_alone_as_long_as_it_is_one(webui):
    assert not uc_touched(webui, GOOD)
    assert not uc_touched(webui, GOOD, cfg_scale=1)
    assert uc_touched(webui, GOOD, cfg_scale=0.5)
    assert uc_touched(webui, GOOD, cfg_scale=0)
    assert uc_touched(webui, GOOD, cfg_scale=-7)
    # parts whose weights cancel each other leave the negative prompt to draw
    assert uc_touched(webui, f"{GOOD} AND a lamp :-1")
    assert not uc_touched(webui, f"{GOOD} AND a lamp :-0.5")


def test_parts_of_negative_weight_are_negative_prompts(webui):
    _, given, job = drawn(webui, f"{GOOD} AND {BAD} :-0.5")
    assert given is webui.Request.cached_c[1]
    assert BAD not in {text.strip() for text in job.prompts}
    _, given, _ = drawn(webui, f"{GOOD} AND {BAD} :-0.5", cfg_scale=-3)
    assert given is not webui.Request.cached_c[1]


def test_an_edit_models_negative_prompt(webui):
    webui.model.cond_stage_key = "edit"
    assert not uc_touched(webui, GOOD, image_cfg_scale=1.5)
    assert uc_touched(webui, GOOD, image_cfg_scale=9)
    assert uc_touched(webui, GOOD, image_cfg_scale=0.5)


def test_hires_by_its_own_scale(webui):
    p = webui.Request(GOOD, hr_prompts=[GOOD], hr_cfg=0.5)
    negative = prompt_parser.SdConditioning([BAD], is_negative_prompt=True)
    how = (prompt_parser.get_learned_conditioning, negative, 4)
    with jobs.begun(Protection()) as job:
        p.get_conds_with_caching(*how, [[None, None]], {})
        assert job.prompts == {}
        p.get_conds_with_caching(*how, [[None, None]], {}, 3)
        assert set(job.prompts) == {BAD}


def test_forge_makes_no_negative_prompt_at_a_scale_of_one(webui):
    p = webui.Request(GOOD)
    with jobs.begun(Protection()):
        assert p.get_conds_with_caching(lambda *_: None, [GOOD], 4, [[None, None]], {}) is None


def test_what_cannot_be_judged_is_not_let_through(webui, monkeypatch):
    p = webui.Request(GOOD, GOOD)
    with jobs.begun(Protection()):
        given = p.get_conds_with_caching
        fewer = lambda *_: SimpleNamespace(batch=[[]])  # noqa: E731
        assert code_of(given, fewer, [GOOD, GOOD], 4, [[None, None]], {}) == "sanitize_encoder"
        assert code_of(given, fewer, [GOOD], 4, [[None, None]], {}) == "sanitize_encoder"
        other = lambda *_: [[SimpleNamespace(cond="?", end_at_step=4)]]  # noqa: E731
        assert code_of(given, other, [GOOD], 4, [[None, None]], {}) == "sanitize_encoder"
    broken = host.Network.forward
    monkeypatch.setattr(
        host.Network, "forward", lambda self, tokens: broken(self, tokens) * float("nan")
    )
    assert code_of(drawn, webui, "a lamp by the sea") == "sanitize_values"


def test_an_empty_prompt_is_no_matter(webui):
    _, given, job = drawn(webui, "")
    assert given is webui.Request.cached_c[1]
    assert job.prompts == {}


def test_a_new_host_argument_is_passed_on(webui):
    seen = []

    def later(*args, **kwargs):
        seen.append((args[6:], kwargs))

    with jobs.begun(NOTHING):
        prompts._judged(later, webui.Request(GOOD), None, [GOOD], 4, [], {}, None, "new", more=1)
    assert seen == [((None, "new"), {"more": 1})]
