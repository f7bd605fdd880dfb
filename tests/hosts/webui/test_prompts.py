# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts on real hosts. Their text encoders have random weights, so what is forbidden is a word
that even those tell from others: stripes. Pictures are compared to the last pixel.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.webui import server

pytestmark = pytest.mark.host

PROBE = Path(__file__).with_name("prompt_probe")
GOOD, BAD = "a plain kite over a field", "a striped kite over a field"
NEVER = "a striped kite over a child"
ENCODERS = {"minixl": {"te1": 768, "te2": 1280}, "minisd2": {"te": 1024}}  # others: CLIP-L alone
MANY = " BREAK ".join(["a small boat", "a red house"] * 2)
LONG = "a wooden bridge near the quiet harbour, " * 25


@pytest.fixture(scope="module", params=server.KINDS)
def host(request, tmp_path_factory):
    """One host for all tests."""
    kind = request.param
    if reason := server.lacking(kind):
        pytest.skip(reason)
    data = tmp_path_factory.mktemp(kind)
    _write_bank(data / "striped.json")
    _install(data, ENCODERS.get(server.CHECKPOINTS[kind], {"te": 768}))
    with server.Host(kind, data, extensions=(PROBE,), pack=False) as running:
        running.options(live_previews_enable=False, samples_save=False)
        yield running


def _write_bank(file: Path) -> None:
    things = ("star", "circle", "square", "house", "boat", "tree", "kite over a field")
    places = [f"{how} bridge near the quiet {where}" for how in ("a wooden", "one")
              for where in ("harbour", "lake", "town", "field")]  # fmt: skip
    bank = {
        "version": 1,
        "name": "striped",
        "groups": [
            {"templates": [f"a {{}} {thing}" for thing in things], "pairs": [["striped", "plain"]]}
        ],
        "harmless": [f"a {how} {thing}" for how in ("red", "small") for thing in things] + places,
        "anchors": ["plain"],
    }
    file.write_text(json.dumps(bank), encoding="utf-8")


def _install(data: Path, encoders: dict[str, int]) -> None:
    """A textual inversion, and LoRAs that move the text encoders little and much.

    Args:
        data: the host's folder.
        encoders: width by what LoRAs call them.
    """
    import torch
    from safetensors.torch import save_file

    made = torch.Generator().manual_seed(0)
    for folder in ("embeddings", "models/Lora"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    names = {"te": "emb_params", "te1": "clip_l", "te2": "clip_g"}
    vectors = {names[at]: torch.randn(3, n, generator=made) * 0.03 for at, n in encoders.items()}
    save_file(vectors, data / "embeddings" / "style7.safetensors")
    for name, size in (("near", 0.002), ("far", 0.4)):
        tensors = {}
        for (encoder, width), layer in itertools.product(encoders.items(), range(2)):
            at = f"lora_{encoder}_text_model_encoder_layers_{layer}_self_attn_v_proj"
            tensors[f"{at}.lora_down.weight"] = torch.randn(4, width, generator=made) / 28
            tensors[f"{at}.lora_up.weight"] = size * torch.randn(width, 4, generator=made)
            tensors[f"{at}.alpha"] = torch.tensor(4.0)
        save_file(tensors, data / "models" / "Lora" / f"te-{name}.safetensors")


@pytest.fixture(autouse=True)
def _alive(host):
    yield
    host.post("/probe/prompts", preset="off")
    assert host.alive


@pytest.fixture
def draw(host):
    """A picture under a preset; `draw.told` is what was said of its texts."""

    def drawn(prompt, preset="default", **body):
        host.post("/probe/prompts", preset=preset)
        pictures = host.txt2img(prompt=prompt, **body)
        drawn.told = {t: e["verdict"] for t, e in host.get("/probe/prompts")["prompts"].items()}
        return pictures[0]

    return drawn


def name_of(host):
    return server.CHECKPOINTS[host.kind]


def same(one, other):
    return np.array_equal(one, other)


def cleaned(draw, *texts):
    """Whether these texts were cleaned, and every other one let pass."""
    return all((draw.told[t] in ("cleaned", "anchored")) == (t in texts) for t in draw.told)


def test_a_harmless_prompt_draws_the_same(draw):
    assert same(draw(GOOD), draw(GOOD, "off"))
    assert cleaned(draw)


def test_a_cleaned_prompt_draws_something_else_and_leaves_nothing_behind(draw):
    before = draw(BAD, "off")
    safe = draw(BAD)
    assert cleaned(draw, BAD)
    assert set(draw.told) == {BAD}
    assert not same(safe, before)
    assert same(draw(BAD, "off"), before)
    assert same(draw(BAD), safe)


def test_every_encoder_is_exchanged(host, draw):
    draw(BAD)
    told = host.get("/probe/prompts")["exchanged"][BAD]
    parts = {"minixl": ["g", "l", "pooled"], "minisd2": ["h"]}
    assert sorted(part for part in told if told[part]) == parts.get(name_of(host), ["l"])


def test_a_refused_prompt_fails_the_request_only(host, draw):
    with pytest.raises(server.Refused, match="words about minors") as caught:
        draw(NEVER)
    assert caught.value.status == 500
    draw(GOOD)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (f"{GOOD} AND {BAD}", [BAD]),
        ("a [plain:striped:0.5] kite over a field", [BAD]),
        ("a [plain|striped] kite over a field", [BAD]),
        (f"{MANY} BREAK {BAD}", [f"{MANY} BREAK {BAD}"]),
        ("a (striped:0.3) kite over a (field:1.3)", ["a (striped:0.3) kite over a (field:1.3)"]),
        (f"{BAD} style7", [f"{BAD} style7"]),
    ],
    ids=["and", "edit", "turns", "break", "emphasis", "inversion"],
)
def test_every_way_to_write_a_prompt(draw, prompt, texts):
    plain = draw(prompt, "off", steps=4)
    safe = draw(prompt, steps=4)
    found = [text for text, verdict in draw.told.items() if verdict != "pass"]
    assert [text.strip() for text in found] == texts
    assert not same(safe, plain)
    assert same(draw(prompt, "off", steps=4), plain)
    harmless = prompt.replace("|striped", "").replace("striped", "plain")
    assert same(draw(harmless, steps=4), draw(harmless, "off", steps=4))


def test_two_hundred_words(draw):
    assert same(draw(LONG, "gentle"), draw(LONG, "off"))
    draw(LONG, "gentle")
    assert list(draw.told.values()) == ["pass"]


def test_hires_and_its_own_prompt(host, draw):
    hires = {
        "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7,
        "hr_second_pass_steps": 2,
    }  # fmt: skip
    if host.kind == "forge":  # its API fails without
        hires["hr_additional_modules"] = ["Use same choices"]
    own = {**hires, "hr_prompt": BAD}
    plain = draw(GOOD, "off", **own)
    assert not same(draw(GOOD, **own), plain)
    assert cleaned(draw, BAD)
    assert set(draw.told) == {GOOD, BAD}
    assert same(draw(GOOD, **hires), draw(GOOD, "off", **hires))
    with pytest.raises(server.Refused, match="words about minors"):
        draw("a child over a field", **own)


def test_a_negative_prompt_is_left_alone_while_it_is_one(draw):
    negative = {"negative_prompt": BAD}
    assert same(draw(GOOD, **negative), draw(GOOD, "off", **negative))
    plain = draw(GOOD, "off", cfg_scale=0.2, **negative)
    assert not same(draw(GOOD, cfg_scale=0.2, **negative), plain)
    assert cleaned(draw, BAD)


def test_pictures_of_other_extensions_without_scripts(host):
    if host.kind == "reforge":
        pytest.skip("reForge itself fails without scripts")

    def pictures(preset):
        host.post("/probe/prompts", preset=preset)
        return server.pictures(host.post("/probe/draw", prompt=[GOOD, BAD]))

    plain, safe = pictures("off"), pictures("default")
    assert same(safe[0], plain[0])
    assert not same(safe[1], plain[1])


def test_loras_on_the_text_encoder(host, draw):
    draw(GOOD)
    before = host.get("/probe/prompts")["profiles"]
    near = f"{BAD} <lora:te-near:1>"
    plain = draw(near, "off")
    assert not same(plain, draw(BAD, "off"))
    assert not same(draw(near), plain)
    assert host.get("/probe/prompts")["profiles"] == before
    draw(f"{BAD} <lora:te-far:1>")
    assert len(host.get("/probe/prompts")["profiles"]) == len(before) + 1
    assert same(draw(GOOD), draw(GOOD, "off"))
    assert len(host.get("/probe/prompts")["profiles"]) == len(before) + 1


def test_clip_skip_is_another_encoder(host, draw):
    layers = {"minixl": 3}.get(name_of(host), 2)  # SDXL begins at 2
    settings = {"CLIP_stop_at_last_layers": layers}
    if host.kind == "a1111":
        if name_of(host) == "minisd2":
            pytest.skip("A1111 skips no layer of SD 2's encoder")
        settings["sdxl_clip_l_skip"] = True  # its way to skip layers of SDXL's
    skipped = {"override_settings": settings}
    draw(BAD)
    before = host.get("/probe/prompts")["profiles"]
    plain = draw(BAD, "off", **skipped)
    assert not same(draw(BAD, **skipped), plain)
    assert same(draw(GOOD, **skipped), draw(GOOD, "off", **skipped))
    assert len(host.get("/probe/prompts")["profiles"]) == len(before) + 1


def test_another_checkpoint_by_the_way(host, draw):
    other = {"override_settings": {"sd_model_checkpoint": f"{server.CHECKPOINTS[host.kind]}-b"}}
    plain = draw(BAD, "off", **other)
    assert not same(draw(BAD, **other), plain)
    refined = {"refiner_checkpoint": f"{server.CHECKPOINTS[host.kind]}-b", "steps": 4}
    refined["refiner_switch_at"] = 0.5
    plain = draw(BAD, "off", **refined)
    assert not same(draw(BAD, **refined), plain)
    assert same(draw(GOOD, **refined), draw(GOOD, "off", **refined))
