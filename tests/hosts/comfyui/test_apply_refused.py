# SPDX-License-Identifier: GPL-3.0-or-later
"""What Apply SafeGen refuses, when, and in which words."""

from __future__ import annotations

import pytest

from tests.hosts.comfyui.client import Refused


def failed(client, graph, model, **how) -> str:
    graph.digest(model, **how)
    run = client.run(graph)
    assert run.status == "error"
    assert run.error.startswith("SafeGenApply: "), run.error
    return run.error


def test_a_patch_for_another_family_names_both(client, graph):
    told = failed(client, graph, graph.protected(graph.unet("nano-sdxl"), "sd1.safetensors"),
                  width=2048)  # fmt: skip
    assert "Nano SDXL" in told
    assert "Nano SD1" in told
    assert "[patch_family]" in told


def test_a_model_that_no_patch_can_go_on_is_named(client, graph):
    told = failed(client, graph, graph.protected(graph.unet("nano-flux")), width=64)
    assert "Flux" in told
    assert "Check Image" in told  # what still works
    assert "[model_refused]" in told


def test_a_patch_that_lacks_tensors_is_not_applied(client, graph):
    told = failed(client, graph, graph.protected(graph.unet(), "sd1-partial.safetensors"))
    assert "[patch_coverage]" in told
    assert "15 of 20" in told


def test_a_patch_for_another_base_needs_to_be_wanted(client, graph, latent):
    told = failed(client, graph, graph.protected(graph.unet(), "sd1-stranger.safetensors"))
    assert "[patch_base]" in told
    wanted = latent(lambda g: g.protected(g.unet(), "sd1-stranger.safetensors", any_base=True))
    assert not (wanted == latent(lambda g: g.unet())).all()


def test_a_patch_that_is_not_there_is_refused_before_anything_runs(client, graph):
    graph.digest(graph.protected(graph.unet(), "absent.safetensors"))
    with pytest.raises(Refused, match="absent") as caught:
        client.run(graph)
    assert caught.value.status == 400
    assert "[file_missing]" in caught.value.sentences


@pytest.mark.parametrize("strength", [-1.0, 99.0])
def test_a_strength_out_of_range_is_refused(client, graph, strength):
    graph.digest(graph.protected(graph.unet(), strength=strength))
    with pytest.raises(Refused):
        client.run(graph)
