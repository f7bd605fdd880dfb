# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prompts of a running graph are negative ones.

A negative prompt names what is to be avoided: cleaning it would do harm. Text encode nodes do not
know what their prompt is for, so the graph is followed from the node to the samplers. Where it does
not say clearly that a prompt is only ever avoided, the prompt counts as positive.
"""

from __future__ import annotations

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
    """All nodes of the running graph that encode for negative inputs only.

    ComfyUI keeps a prompt that it has encoded, also when it is connected to something else: so the
    guard has to run again whenever this changes.
    """
    graph, _ = _running()
    return [node for node in sorted(graph or {}) if graph and only_negative(graph, node)]


def only_negative(graph: Graph, node: str) -> bool:
    """Whether every conditioning that leaves a node ends in a negative input, with a cfg from 1 on.

    Below 1 a sampler is drawn towards its negative prompt.
    """
    found = list(_ends(graph, node, _slots(graph, node), set()))
    return bool(found) and all(found)


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
