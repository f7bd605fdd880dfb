# SPDX-License-Identifier: GPL-3.0-or-later
"""What `example_workflows/` promises; that each of them runs is in test_browser.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hosts.comfyui.examples import EXAMPLES, STAND_INS
from tests.hosts.comfyui.sources import newest

PATCH = STAND_INS["file"]
NAMES = [file.stem for file in EXAMPLES]
each = pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)


def nodes(example: Path) -> list[dict[str, Any]]:
    return json.loads(example.read_text(encoding="utf-8"))["nodes"]


def note(example: Path) -> str:
    return "".join(n["widgets_values"][0] for n in nodes(example) if n["type"] == "MarkdownNote")


def uses_patch(example: Path) -> bool:
    return any(node["type"] == "SafeGenApply" for node in nodes(example))


def test_there_is_one_for_each_way_and_the_first_needs_no_patch():
    protect = {"compare", "protect", "protect-check-censor"}
    assert {"check-and-censor", "guard-prompt"} | protect == set(NAMES)
    assert next(file.stem for file in EXAMPLES if not uses_patch(file)) == min(NAMES)
    assert {file.stem for file in EXAMPLES if uses_patch(file)} == protect


@each
def test_it_has_a_picture(example):
    picture = example.with_suffix(".jpg")
    assert picture.stat().st_size <= 100_000
    with Image.open(picture) as opened:
        assert opened.format == "JPEG"
        assert min(opened.size) >= 400


@each
def test_its_note_says_what_a_friend_without_the_pack_does(example):
    told = note(example)
    assert told.startswith("## ")
    assert "friend without this pack gets the same image" in told
    assert "same" in told
    assert "seed" in told
    if uses_patch(example):
        assert all(word in told for word in ("models/loras", "LoraLoaderModelOnly", "strength 1"))
        assert "models/safegen" in told


@each
def test_nothing_lies_on_anything_else(example):
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in nodes(example)]
    title = 30
    for i, (x, y, w, h, kind) in enumerate(boxes):
        for u, v, p, q, other in boxes[:i]:
            apart = x >= u + p or u >= x + w or y - title >= v + q or v - title >= y + h
            assert apart, f"{kind} lies on {other}"


@each
def test_all_its_nodes_are_ours_or_the_hosts_own(client, example):
    known = client.get("/object_info")
    for node in nodes(example):
        if node["type"] == "MarkdownNote":  # the front end's
            continue
        module = known[node["type"]]["python_module"]
        assert node["type"].startswith("SafeGen") == module.startswith("custom_nodes")


def of_a_friend(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same graph without the pack, as the notes say."""
    kinds = {key: node["class_type"] for key, node in prompt.items()}
    passing = {"SafeGenCheckImage": "images", "SafeGenGuardClip": "clip"}
    friend = {}
    for key, node in prompt.items():
        inputs = {
            name: prompt[value[0]]["inputs"][passing[kinds[value[0]]]]
            if isinstance(value, list) and kinds[value[0]] in passing
            else value
            for name, value in node["inputs"].items()
        }
        if any(
            isinstance(v, list) and kinds[v[0]] == "SafeGenExplainPrompt" for v in inputs.values()
        ):
            continue
        if kinds[key] == "SafeGenApply":
            lora = {"lora_name": PATCH, "strength_model": 1.0, "model": inputs["model"]}
            friend[key] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
        elif not kinds[key].startswith("SafeGen"):
            friend[key] = {**node, "inputs": inputs}
    return friend


@newest
@pytest.mark.parametrize("example", [file for file in EXAMPLES if file.stem != "compare"],
                         ids=[name for name in NAMES if name != "compare"])  # fmt: skip
def test_a_friend_without_the_pack_gets_the_same_image(page, client, example):
    workflow = json.loads(example.read_text(encoding="utf-8"))
    page.evaluate("([workflow]) => comfyAPI.app.app.loadGraphData(workflow)", [workflow])
    prompt = page.evaluate("async () => (await comfyAPI.app.app.graphToPrompt()).output")
    for node in prompt.values():
        node["inputs"] |= {k: v for k, v in STAND_INS.items() if k in node["inputs"]}
    friend = of_a_friend(prompt)
    assert not any(node["class_type"].startswith("SafeGen") for node in friend.values())
    saved = next(key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    pictures = []
    for graph in (prompt, friend):
        run = client.run(graph)
        assert run.ok, run.error
        pictures.append(run.images(saved))
    assert len(pictures[0]) == 1
    assert np.array_equal(*pictures)


def test_the_templates_browser_offers_them(client):
    [folder] = [name for name in client.get("/workflow_templates") if "safegen" in name]
    assert sorted(client.get("/workflow_templates")[folder]) == sorted(NAMES)
    for name in NAMES:
        shown = client.get_bytes(f"/api/workflow_templates/{folder}/{name}.jpg")
        assert shown[:2] == b"\xff\xd8"
