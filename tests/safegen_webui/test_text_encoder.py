# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' text encoders; real ones are in tests/hosts/webui."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from safegen_core.errors import SanitizeError
from safegen_core.sanitize.encoder import Role
from safegen_webui.text_encoder import WebuiEncoder
from tests.safegen_webui.host import text as host

MODELS = (host.Sd1, host.Sdxl, host.Refiner, host.ForgeSd1, host.ForgeSdxl)
TEXT = "a tree person by the sea"
LONG = " ".join(f"word{n % 9}" for n in range(200))


@pytest.fixture(params=MODELS, ids=[model.__name__ for model in MODELS])
def model(request, monkeypatch, tmp_path):
    model = request.param()
    model.host = host.installed(monkeypatch, model, tmp_path)
    return model


def told(model, *texts):
    """The host's answer to texts that it encodes together, one of each."""
    conds = model.get_learned_conditioning(list(texts))
    if isinstance(conds, dict):
        return [{key: value[k] for key, value in conds.items()} for k in range(len(texts))]
    return list(conds)


def rows(cond):
    return cond["crossattn"] if isinstance(cond, dict) else cond


def equal(one, other):
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.name == y.name
            assert torch.equal(x.states, y.states)
            assert torch.equal(x.roles, y.roles)
            assert torch.equal(x.words, y.words)


def said(chunks):
    return [[word.text for word in chunk] for chunk in chunks]


@pytest.mark.parametrize("text", [TEXT, LONG, "", "a tree BREAK by the sea"])
def test_the_hosts_rows_are_what_it_encodes(model, text):
    (cond,) = told(model, text)
    encoder = WebuiEncoder(model)
    reading = encoder.read(text, cond, plain=True)
    equal(reading.encodings, encoder.encode(reading.chunks))
    joined = torch.cat([torch.cat([p.states for p in e], -1) for e in reading.encodings])
    assert torch.equal(joined, rows(cond))
    same = encoder.assembled(reading.chunks, reading.encodings, reading, cond)
    assert torch.equal(rows(same), rows(cond))


def test_words_and_roles(model):
    encoder = WebuiEncoder(model)
    chunks = encoder.chunks("a two-piece word, by the sea")
    assert said(chunks) == [["a", "twopiece", "word", ",", "by", "the", "sea"]]
    for part in encoder.encode(chunks)[0]:
        assert part.words[:6].tolist() == [-1, 0, 1, 1, 2, 3]
        assert part.roles.tolist()[:2] == [Role.START, Role.WORD]
        assert (part.roles == Role.END).nonzero().tolist() == [[9]]
        assert (part.roles == Role.PAD).sum() == 77 - 10


def test_long_prompts_and_breaks_are_cut_as_the_host_does(model):
    encoder = WebuiEncoder(model)
    assert [len(chunk) for chunk in encoder.chunks(LONG)] == [75, 75, 50]
    assert said(encoder.chunks("a tree BREAK by")) == [["a", "tree"], ["by"]]


def test_emphasis_is_told_and_does_not_enter(model):
    text = "a (tree:1.3) person (by the:0.2) sea"
    (cond,) = told(model, text)
    encoder = WebuiEncoder(model)
    assert encoder.emphasised([TEXT, text])
    assert not encoder.emphasised([TEXT, LONG])
    reading = encoder.read(text, cond, plain=False)
    equal(reading.encodings, encoder.encode(encoder.chunks(TEXT)))
    assert [word.weight for word in reading.chunks[0]] == [1, 1.3, 1, 0.2, 0.2, 1]


@pytest.mark.parametrize("rule", ["Original", "No norm", "Ignore"])
def test_what_takes_its_place_is_what_the_host_would_say(model, rule):
    model.host.opts.emphasis = rule
    text = f"a (tree:1.3) person {LONG}"
    (cond,), (wanted,) = told(model, text), told(model, f"a (river:1.3) person {LONG}")
    encoder = WebuiEncoder(model)
    reading = encoder.read(text, cond, plain=False)
    before = rows(cond).clone()
    (river,) = encoder.chunks("river")[0]
    tree = reading.chunks[0][1]
    first = (reading.chunks[0][0], river.weighing(tree.weight), *reading.chunks[0][2:])
    chunks = [first, *reading.chunks[1:]]
    encodings = [encoder.encode([first])[0], *reading.encodings[1:]]
    changed = encoder.assembled(chunks, encodings, reading, cond)
    assert torch.allclose(rows(changed), rows(wanted), atol=1e-5)
    assert not torch.allclose(rows(changed), rows(cond), atol=1e-2)
    assert torch.equal(rows(changed)[77:], rows(cond)[77:])  # the rest bit for bit
    assert torch.equal(rows(cond), before)  # and the host's own answer stays
    if isinstance(cond, dict):
        assert torch.allclose(changed["vector"], wanted["vector"], atol=1e-5)
        assert torch.equal(changed["vector"][-2:], cond["vector"][-2:])
        assert not torch.equal(changed["vector"], cond["vector"])


def test_texts_that_are_encoded_together_are_filled_up(model):
    short, _ = told(model, TEXT, LONG)
    encoder = WebuiEncoder(model)
    reading = encoder.read(TEXT, short, plain=True)
    assert [len(chunk) for chunk in reading.chunks] == [6, 0, 0]
    equal(reading.encodings[1:], encoder.encode([(), ()]))


def test_textual_inversions_are_words(model):
    for tower in model.towers:
        tower.inversions.add("style7", torch.randn(3, 32))
    text = "a style7 tree, style7"
    (cond,) = told(model, text)
    encoder = WebuiEncoder(model)
    reading = encoder.read(text, cond, plain=True)
    assert said(reading.chunks) == [["a", "style7", "tree", ",", "style7"]]
    assert reading.encodings[0][0].words[1:10].tolist() == [0, 1, 1, 1, 2, 3, 4, 4, 4]
    equal(reading.encodings, encoder.encode(reading.chunks))


def test_an_inversion_that_no_longer_fits_is_left_out(model):
    for tower in model.towers:
        tower.inversions.add("style7", torch.randn(3, 32))
    encoder = WebuiEncoder(model)
    inversion = encoder.chunks("style7")[0]
    filled = encoder.chunks(LONG)[0][:74]
    equal(encoder.encode([(*filled, *inversion)]), encoder.encode([filled]))


def test_an_end_that_somebody_typed_hides_nothing(model):
    encoder = WebuiEncoder(model)
    chunk = encoder.chunks("a tree <end_of_text> by the sea")[0]
    assert [word.text for word in chunk][-3:] == ["by", "the", "sea"]


def test_the_mark_tells_states_apart_and_no_texts(model):
    encoder = WebuiEncoder(model)
    marks = {encoder.mark(encoder.encode(encoder.chunks(text))) for text in (TEXT, LONG)}
    assert len(marks) == 1
    with torch.no_grad():  # as a LoRA does
        model.towers[-1].network.moved += 0.01 * torch.eye(32)
    assert encoder.mark(encoder.encode(encoder.chunks(TEXT))) not in marks


def refused(model, match="another|of another kind|option"):
    with pytest.raises(SanitizeError, match=match) as caught:
        WebuiEncoder(model)
    assert caught.value.code == "sanitize_encoder"


def test_other_models_are_refused_by_name(monkeypatch, tmp_path):
    other = host.Sd1(kind=host.FrozenXLMREmbedderWithCustomWords)
    host.installed(monkeypatch, other, tmp_path)
    refused(other, "Sd1")
    flux = host.ForgeSdxl()
    flux.text_processing_engine_t5 = flux.text_processing_engine_g
    refused(flux)
    three = host.Sdxl()
    three.conditioner.embedders.append(SimpleNamespace(input_key="txt"))
    refused(three)
    refused(SimpleNamespace(cond_stage_model=None))


def test_the_old_emphasis_is_refused(model):
    model.host.opts.use_old_emphasis_implementation = True
    refused(model, "Use old emphasis")


@pytest.mark.parametrize("wrong", [lambda r: r[:70], lambda r: r[:, :-1], lambda r: None])
def test_an_answer_to_something_else_is_refused(model, wrong):
    (cond,) = told(model, TEXT)
    cond = {**cond, "crossattn": wrong(rows(cond))} if isinstance(cond, dict) else wrong(cond)
    with pytest.raises(SanitizeError) as caught:
        WebuiEncoder(model).read(TEXT, cond, plain=True)
    assert caught.value.code == "sanitize_encoder"


def test_the_encoder_is_brought_where_it_is_asked(model):
    model.fetched, model.lowvram = False, True
    model.host.opts.CLIP_stop_at_last_layers = 2
    WebuiEncoder(model)
    if hasattr(model, "forge_objects"):
        assert model.host.loaded == ["patcher"]
        assert model.clip_skip == 2
    else:
        assert model.fetched
