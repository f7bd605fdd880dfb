# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prompts of a running graph are negative ones.

A negative prompt names what is to be avoided: cleaning it would do harm. Text encode nodes do not
know what their prompt is for, so the graph is followed from the node to the samplers. Where it does
not say clearly that a prompt is only ever avoided, the prompt counts as positive.

ComfyUI keeps what a node gave by what the node is told, not by which node it is: of two nodes that
are told the same only the first is run, and its answer serves both, in later runs too. So a prompt
is spared only if all nodes that are told the same are negative ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

Graph = dict[str, dict[str, Any]]
"""A prompt in ComfyUI's API form."""

_CONDITIONING = ("CONDITIONING", "*")


def is_negative() -> bool:
    """Whether what the executing node encodes leads to negative inputs of samplers only."""
    graph, node = _running()
    return graph is not None and only_negative(graph, node)


def negatives() -> list[str]:
    """Digests of what those nodes of the running graph are told that encode negative prompts only.

    A prompt that ComfyUI has kept unjudged must not serve as a positive one in a later run: so the
    guard has to run again whenever this changes.
    """
    graph, _ = _running()
    known: dict[str, str] = {}
    return sorted(
        {_told(graph, n, known) for n in graph or {} if graph and only_negative(graph, n)}
    )


def only_negative(graph: Graph, node: str) -> bool:
    """Whether a node's prompt, and that of every node that is told the same, is a negative one.

    That is if every conditioning that leaves them ends in a negative input, with a cfg from 1 on:
    below 1 a sampler is drawn towards its negative prompt.
    """
    if not _avoided(graph, node):
        return False
    known: dict[str, str] = {}
    told = _told(graph, node, known)
    return all(_avoided(graph, other) for other in graph if _told(graph, other, known) == told)


def _avoided(graph: Graph, node: str) -> bool:
    found = list(_ends(graph, node, _slots(graph, node), set()))
    return bool(found) and all(found)


def _told(graph: Graph, node: str, known: dict[str, str]) -> str:
    """A digest of a node's kind and inputs, and of all that leads to them; of no node's id."""
    if node not in known:
        known[node] = ""  # of a loop, which ComfyUI refuses
        inputs = {
            name: [_told(graph, value[0], known), value[1]] if _is_link(graph, value) else value
            for name, value in graph[node].get("inputs", {}).items()
        }
        content = json.dumps([graph[node].get("class_type"), inputs], sort_keys=True, default=str)
        known[node] = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return known[node]


def _is_link(graph: Graph, value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in graph


def _ends(graph: Graph, node: str, slots: list[int], seen: set) -> Iterator[bool]:
    """For each end of the ways from these outputs, whether it is negative."""
    for slot in slots:
        if (node, slot) in seen:
            continue
        seen.add((node, slot))
        for consumer, name in _consumers(graph, node, slot):
            onward = _onward(graph, consumer, name)
            if onward:
                yield from _ends(graph, consumer, onward, seen)
            else:
                yield name == "negative" and not _attracted(graph[consumer])


def _consumers(graph: Graph, node: str, slot: int) -> Iterator[tuple[str, str]]:
    for consumer, told in graph.items():
        for name, value in told.get("inputs", {}).items():
            if isinstance(value, list) and value[:2] == [node, slot]:
                yield consumer, name


def _onward(graph: Graph, node: str, name: str) -> list[int]:
    """The outputs that what comes in under a name may leave by.

    Nodes that take a pair, as those of ControlNet do, give a pair of the same names.
    """
    slots = _slots(graph, node)
    names = list(getattr(_kind(graph, node), "RETURN_NAMES", None) or ())
    if name in ("positive", "negative") and {"positive", "negative"} <= set(names):
        return [slot for slot in slots if names[slot] == name]
    return slots


def _slots(graph: Graph, node: str) -> list[int]:
    """A node's outputs of conditioning."""
    kinds = list(getattr(_kind(graph, node), "RETURN_TYPES", None) or ())
    return [slot for slot, kind in enumerate(kinds) if str(kind) in _CONDITIONING]


def _attracted(sampler: dict[str, Any]) -> bool:
    return any(
        name.startswith("cfg") and isinstance(value, int | float) and not value >= 1
        for name, value in sampler.get("inputs", {}).items()
    )


def _kind(graph: Graph, node: str) -> Any:
    import nodes  # ComfyUI's, loaded before us

    return nodes.NODE_CLASS_MAPPINGS.get(graph[node].get("class_type")) if node in graph else None


def _running() -> tuple[Graph | None, str]:
    context = get_executing_context()
    if context is None:
        return None, ""
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    graph = next((item[2] for item in running if item[1] == context.prompt_id), None)
    return graph, context.node_id
