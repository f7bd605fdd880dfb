# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack in ComfyUI's own front end, in a headless Chromium.

Screenshots are left in the folder that SAFEGEN_SCREENSHOTS names, else in the tests' temporary one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts.comfyui.client import Client
from tests.hosts.comfyui.examples import EXAMPLES, STAND_INS
from tests.hosts.comfyui.sources import newest


@pytest.fixture
def shot(server, tmp_path: Path) -> Callable:
    """Take a screenshot of the whole graph: `shot(page, name)`."""
    folder = Path(os.environ.get("SAFEGEN_SCREENSHOTS") or tmp_path)

    def take(page, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.evaluate("""() => {
            const { canvas, graph } = comfyAPI.app.app;
            const boxes = graph._nodes.map((node) => [...node.getBounding()]);
            const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
            const [right, low] = [0, 1].map((i) => Math.max(...boxes.map((b) => b[i] + b[i + 2])));
            canvas.ds.fitToBounds([left, top, right - left, low - top], { zoom: 0.9 });
            canvas.setDirty(true, true);
        }""")
        page.wait_for_timeout(700)
        page.screenshot(path=folder / f"{server.version}-{name}.png")

    return take


def queue(page, client: Client):
    """Press Queue, and wait for the end."""
    known = set(client.get("/history"))
    page.evaluate("comfyAPI.app.app.queuePrompt(0, 1)")
    for _ in range(600):
        new = set(client.get("/history")) - known
        if new:
            return client.wait(new.pop())
        page.wait_for_timeout(100)
    raise AssertionError(f"nothing was queued: {page.inner_text('body')[-2000:]}")


# The samplers with our mark: a badge on the canvas, a style sheet's rule for Vue nodes.
MARKED = """(vue) => comfyAPI.app.app.graph._nodes.filter((node) => vue
    ? [...document.styleSheets].some((sheet) => [...sheet.cssRules].some((rule) =>
        rule.selectorText?.startsWith(`[data-node-id="${node.id}"]`) && rule.style.content))
    : node.badges.map((badge) => typeof badge == "function" ? badge() : badge)
        .some((badge) => badge.text?.includes("✕"))
).map((node) => String(node.id))"""


def load(page, graph) -> None:
    """Put an API graph on the canvas."""
    page.evaluate(
        """async ([graph]) => {
            const { app } = comfyAPI.app;
            await app.loadApiJson(graph, 'test');
            app.graph.arrange();
        }""",
        [dict(graph)],
    )


@newest
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_cards_show_what_was_done(page, client, graph, shot, vue):
    model = graph.unet()
    start = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    shared = {"positive": graph.words(), "negative": graph.words(seed=2), "latent_image": start,
              "seed": 51, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal",
              "denoise": 1.0}  # fmt: skip
    sampled = graph.add("KSampler", model=graph.protected(model), **shared)
    past_it = graph.add("KSampler", model=model, **shared)
    vae = graph.vae()
    picture, other = (graph.add("VAEDecode", samples=s, vae=vae) for s in (sampled, past_it))
    for image in (graph.check(picture, policy="blind.json"), other,
                  graph.check(graph.picture("gbrw"))):  # fmt: skip
        graph.add("PreviewImage", images=image)
    page.evaluate("on => comfyAPI.app.app.extensionManager.setting"
                  ".set('Comfy.VueNodes.Enabled', on)", vue)  # fmt: skip
    load(page, graph)
    page.wait_for_selector(".safegen-card.waiting")
    run = queue(page, client)
    assert run.ok, run.error
    page.wait_for_function("document.querySelectorAll('.safegen-card').length == 3 "
                           "&& !document.querySelector('.safegen-card.waiting')")  # fmt: skip
    page.evaluate("comfyAPI.app.app.graph.arrange()")  # nodes have grown with their cards
    shot(page, "cards-vue" if vue else "cards")
    tones = page.eval_on_selector_all(".safegen-card", "all => all.map(c => c.dataset.tone)")
    assert sorted(tones) == ["amber", "green", "green"]
    assert "sd1.safetensors" in page.inner_text("body")
    marked = page.evaluate(MARKED, vue)
    assert marked == [past_it]


@newest
@pytest.mark.parametrize("palette", ["light", "dark"])
def test_cards_show_what_is_in_a_prompt(page, client, graph, shot, palette):
    clip = graph.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors").output(1)
    dial = {"preset": "custom", "threshold": 0.4, "strength": 1.0}
    guard = graph.add("SafeGenGuardClip", clip=clip, **dial)
    for text in (f"a (striped:1.2) star in the {palette}", "a plain house"):
        encoded = graph.add("CLIPTextEncode", clip=guard, text=text)
        graph.add("ShowConditioning", conditioning=encoded)
    for text in ("a striped boat, a plain tree and a red house by the sea",
                 "a striped star for a child"):  # fmt: skip
        graph.add("SafeGenExplainPrompt", clip=clip, text=text, **dial)
    page.evaluate("name => comfyAPI.app.app.extensionManager.setting"
                  ".set('Comfy.ColorPalette', name)", palette)  # fmt: skip
    load(page, graph)
    page.wait_for_selector(".safegen-card.waiting")
    run = queue(page, client)
    assert run.ok, run.error
    page.wait_for_function("document.querySelectorAll('.safegen-card').length == 3 "
                           "&& !document.querySelector('.safegen-card.waiting')")  # fmt: skip
    page.evaluate("comfyAPI.app.app.graph.arrange()")  # nodes have grown with their cards
    shot(page, f"prompts-{palette}")
    told = page.eval_on_selector_all(".safegen-card", "all => all.map(card => card.innerText)")
    assert all("striped" in card for card in told)
    tones = page.eval_on_selector_all(".safegen-card", "all => all.map(c => c.dataset.tone)")
    assert "red" in tones
    assert "[sanitize_minors]" in "".join(told)
    assert not any("wholePrompt" in card or "endOfText" in card for card in told)
    page.evaluate("comfyAPI.app.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@newest
@pytest.mark.parametrize("palette", ["light", "dark"])
def test_cards_show_what_is_in_conditioning(page, client, graph, shot, palette, between):
    clip = graph.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors").output(1)
    dial = {"preset": "custom", "threshold": between}
    for text in (f"a striped star in the {palette}", f"a plain star in the {palette}"):
        encoded = graph.add("CLIPTextEncode", clip=clip, text=text)
        node = graph.add("SafeGenSanitizeConditioning", conditioning=encoded, clip=clip, **dial)
        graph.add("ShowConditioning", conditioning=node)
    page.evaluate("name => comfyAPI.app.app.extensionManager.setting"
                  ".set('Comfy.ColorPalette', name)", palette)  # fmt: skip
    load(page, graph)
    run = queue(page, client)
    assert run.ok, run.error
    page.wait_for_function("document.querySelectorAll('.safegen-card').length == 2 "
                           "&& !document.querySelector('.safegen-card.waiting')")  # fmt: skip
    page.evaluate("comfyAPI.app.app.graph.arrange()")
    shot(page, f"conditioning-{palette}")
    tones = page.eval_on_selector_all(".safegen-card", "all => all.map(c => c.dataset.tone)")
    assert sorted(tones) == ["amber", "green"]
    told = page.inner_text("body")
    assert "striped" not in "".join(
        page.eval_on_selector_all(".safegen-card", "all => all.map(card => card.innerText)")
    )
    assert "something harmless stands in its place" in told
    page.evaluate("comfyAPI.app.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@newest
def test_an_error_is_shown_on_the_node(page, client, graph, shot):
    model = graph.protected(graph.unet("nano-sdxl"))
    graph.digest(model, width=2048)
    load(page, graph)
    run = queue(page, client)
    assert not run.ok
    page.wait_for_selector(".safegen-card[data-tone=red]")
    shot(page, "error")
    assert "Nano SDXL" in page.inner_text(".safegen-card[data-tone=red]")


@newest
def test_why_a_graph_was_not_queued_is_told_on_the_card(page, graph):
    graph.save(graph.check(graph.picture("g"), policy="red.json"))
    load(page, graph)
    policy = "comfyAPI.app.app.graph._nodes.flatMap(n => n.widgets ?? [])" \
             ".find(w => w.name == 'policy')"  # fmt: skip
    page.evaluate(f"{policy}.value = 'gone.json'; comfyAPI.app.app.queuePrompt(0, 1)")
    page.wait_for_selector(".safegen-card[data-tone=red]")
    assert "gone.json" in page.inner_text(".safegen-card")
    assert "[policy_missing]" in page.inner_text(".safegen-card")
    page.evaluate(f"{policy}.value = 'red.json'; comfyAPI.app.app.queuePrompt(0, 1)")
    page.wait_for_selector(".safegen-card[data-tone=green]")


def test_the_node_library_finds_us_by_everyday_words(client):
    known = client.get("/object_info")
    for word in ("nsfw", "censor"):
        assert [n for n, told in known.items() if n.startswith("SafeGen")
                and any(word in alias for alias in told["search_aliases"])]  # fmt: skip


@newest
@pytest.mark.parametrize("example", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_an_example_workflow_runs(page, client, server, shot, trusted, example):
    from PIL import Image

    Image.new("RGB", (64, 64), (30, 90, 160)).save(server.base / "input" / "example.png")
    workflow = json.loads(example.read_text(encoding="utf-8"))
    trusted("sd1.safetensors")
    page.evaluate("([workflow]) => comfyAPI.app.app.loadGraphData(workflow)", [workflow])
    page.wait_for_timeout(500)
    wanted = {node["type"] for node in workflow["nodes"]}
    assert wanted == set(page.evaluate("comfyAPI.app.app.graph._nodes.map(node => node.type)"))
    assert wanted <= set(page.evaluate("Object.keys(LiteGraph.registered_node_types)"))
    shot(page, f"example-{example.stem}")
    page.evaluate(
        """([values]) => {
            for (const node of comfyAPI.app.app.graph._nodes) {
                for (const widget of node.widgets ?? [])
                    if (widget.name in values) widget.value = values[widget.name];
                node.has_errors = false; // the real files were missed when it was loaded
            }
        }""",
        [STAND_INS],
    )
    run = queue(page, client)
    assert run.ok, run.error
    page.wait_for_timeout(500)
    shot(page, f"example-{example.stem}-run")
