# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prompts of a graph are negative ones; graphs and node types made by hand."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest


def kind(types, names=None):
    told = {"RETURN_TYPES": tuple(types)}
    return type("Node", (), told if names is None else {**told, "RETURN_NAMES": tuple(names)})


KINDS = {
    "Encode": kind(["CONDITIONING"]),
    "EncodeBoth": kind(["CONDITIONING", "CONDITIONING"]),
    "Combine": kind(["CONDITIONING"]),
    "Reroute": kind(["*"]),
    "ControlNet": kind(["CONDITIONING", "CONDITIONING"], ["positive", "negative"]),
    "Inpaint": kind(["CONDITIONING", "CONDITIONING", "LATENT"], ["positive", "negative", "latent"]),
    "Unnamed": kind(["CONDITIONING", "CONDITIONING"]),
    "Sampler": kind(["LATENT"]),
    "Save": kind([]),
}


@pytest.fixture
def branches(pack, monkeypatch):
    """`safegen_comfy.branches`; `.run(graph, node)` makes a graph the running one."""
    queue = SimpleNamespace(running=[])
    queue.get_current_queue_volatile = lambda: (queue.running, [])
    context = []
    stand_ins = {
        "nodes": {"NODE_CLASS_MAPPINGS": KINDS},
        "server": {"PromptServer": SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue))},
        "comfy_execution": {},
        "comfy_execution.utils": {
            "get_executing_context": lambda: context[-1] if context else None
        },
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    module = pack("safegen_comfy.branches")

    def run(graph, node, prompt="now"):
        queue.running = [(0, "another", {}, {}, []), (1, "now", graph, {}, [])]
        context.append(SimpleNamespace(prompt_id=prompt, node_id=node))

    module.run = run
    return module


def node(type_, **inputs):
    return {"class_type": type_, "inputs": inputs}


def graph(cfg=7.0, **more):
    """Two prompts, 1 positive and 2 negative, at a sampler."""
    return {
        "1": node("Encode", text="a"),
        "2": node("Encode", text="b"),
        "9": node("Sampler", positive=["1", 0], negative=["2", 0], cfg=cfg),
        **more,
    }


def test_only_what_leads_to_negative_inputs_alone_is_negative(branches):
    told = graph()
    assert [branches.only_negative(told, n) for n in "12"] == [False, True]
    both = graph(**{"8": node("Sampler", positive=["2", 0], negative=["1", 0], cfg=5)})
    assert [branches.only_negative(both, n) for n in "12"] == [False, False]


@pytest.mark.parametrize("more", [
    {"8": node("Sampler", conditioning=["2", 0])},
    {"8": node("Save", value=["2", 0])},
    {"8": node("Never heard of it", negative_prompt=["2", 0])},
    {"8": node("Never heard of it", anything=["2", 0])},
])  # fmt: skip
def test_any_other_use_makes_it_positive(branches, more):
    assert not branches.only_negative(graph(**more), "2")


@pytest.mark.parametrize(("cfg", "negative"), [
    (1.0, True), (1, True), (0.99, False), (0, False), (-2.0, False), (float("nan"), False),
    (["7", 0], True),
])  # fmt: skip
def test_below_a_cfg_of_one_a_negative_prompt_attracts(branches, cfg, negative):
    assert branches.only_negative(graph(cfg), "2") is negative


def test_the_sign_is_kept_through_conditioning_nodes(branches):
    told = {
        "1": node("Encode", text="a"),
        "2": node("Encode", text="b"),
        "3": node("Combine", conditioning_1=["2", 0], conditioning_2=["2", 0]),
        "4": node("Reroute", value=["3", 0]),
        "5": node("ControlNet", positive=["1", 0], negative=["4", 0], strength=1.0),
        "6": node("Inpaint", positive=["5", 0], negative=["5", 1]),
        "9": node("Sampler", positive=["6", 0], negative=["6", 1], latent=["6", 2], cfg=7.0),
    }
    assert [branches.only_negative(told, n) for n in "12"] == [False, True]
    told["9"]["inputs"] |= {"positive": ["6", 1], "negative": ["6", 0]}
    assert [branches.only_negative(told, n) for n in "12"] == [True, False]


def test_a_prompt_that_a_positive_node_is_told_too_is_positive(branches):
    told = graph()
    told["2"]["inputs"]["text"] = "a"
    assert not branches.only_negative(told, "2")  # ComfyUI runs one of the two for both
    told["1"]["inputs"]["text"], told["2"]["inputs"]["text"] = ["3", 0], ["4", 0]
    told |= {"3": node("Text", value="a"), "4": node("Text", value="a")}
    assert not branches.only_negative(told, "2")
    told["4"]["inputs"]["value"] = "b"
    assert branches.only_negative(told, "2")


def test_another_negative_text_is_another_list_of_negatives(branches):
    """Else a positive node that takes the text over would find it encoded, and unjudged."""
    lists = []
    for text in ("b", "c"):
        told = graph(**{"2": node("Encode", text=text)})
        branches.run(told, "2")
        lists.append(branches.negatives())
    assert lists[0] != lists[1]


def test_a_pair_whose_outputs_have_no_names_is_positive(branches):
    told = {
        "2": node("Encode", text="b"),
        "5": node("Unnamed", positive=["1", 0], negative=["2", 0]),
        "9": node("Sampler", positive=["5", 0], negative=["5", 1]),
    }
    assert not branches.only_negative(told, "2")


def test_a_node_that_encodes_both_is_positive(branches):
    told = {
        "2": node("EncodeBoth", text="b"),
        "9": node("Sampler", positive=["2", 0], negative=["2", 1]),
    }
    assert not branches.only_negative(told, "2")


def test_what_leads_nowhere_or_is_unknown_or_runs_in_a_circle_is_positive(branches):
    circle = {"2": node("Combine", a=["3", 0]), "3": node("Combine", a=["2", 0])}
    assert not branches.only_negative({"2": node("Encode")}, "2")
    assert not branches.only_negative(graph(), "77")
    assert not branches.only_negative(circle, "2")


def test_the_running_graph_is_asked(branches):
    assert not branches.is_negative()
    assert branches.negatives() == []
    branches.run(graph(), "2")
    assert branches.is_negative()
    assert len(branches.negatives()) == 1
    branches.run(graph(), "1")
    assert not branches.is_negative()
    branches.run(graph(cfg=0.5), "2")
    assert not branches.is_negative()
    assert branches.negatives() == []
    branches.run(graph(), "2", prompt="over")
    assert not branches.is_negative()
