# SPDX-License-Identifier: GPL-3.0-or-later
"""The example workflows, and what stands in for the files they name."""

from __future__ import annotations

import json

from tests.hosts.comfyui.sources import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))

# Where an example names files of the real world, the nano ones stand in.
STAND_INS = {
    "ckpt_name": "nano-sd1.safetensors",
    "unet_name": "nano-sd1.safetensors",
    "vae_name": "nano.safetensors",
    "lora_name": "style.safetensors",
    "file": "sd1.safetensors",
    "checkpoint": "nano-sd1.safetensors",
    "policy": "red.json",
    "detectors": "red",
    "more_labels": "TEST_RED = 0.5 censor",
    "width": 64,
    "height": 64,
    "steps": 1,
    "image": "example.png",
}


def prompts() -> set[str]:
    """What the examples ask for."""
    return {
        node["widgets_values"][0]
        for example in EXAMPLES
        for node in json.loads(example.read_text(encoding="utf-8"))["nodes"]
        if node["type"] == "CLIPTextEncode"
    }
