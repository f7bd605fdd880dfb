# SPDX-License-Identifier: GPL-3.0-or-later
"""Every picture records what Apply SafeGen did in its graph: which patch, in what strength.

ComfyUI writes the entries of a prompt's `extra_pnginfo` into the pictures it saves, all of them
into each: with several branches, the graph in the same file says which node a picture came from.
`Apply SafeGen` puts its entry there when it runs. From ComfyUI's cache it does not run; then the
entry of the last time is put in when the prompt is queued, told by the part of the graph that leads
to the node. A node that runs several times in one prompt, over a list, records the last time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

KEY = "safegen"
APPLY = "SafeGenApply"
_KEPT = 256

_last: OrderedDict[str, dict[str, Any]] = OrderedDict()


def install() -> None:
    """Watch prompts as they are queued."""
    from server import PromptServer

    PromptServer.instance.add_on_prompt_handler(_queued)


def put(entry: dict[str, Any], node: str, prompt: Mapping[str, Any], info: Any) -> None:
    """Record what a node did.

    Args:
        entry: patch, strength and so on, as JSON holds it.
        node: the node's id.
        prompt: the graph it stands in.
        info: the prompt's `extra_pnginfo`; None if ComfyUI was started without metadata.
    """
    branch = _branch(node, prompt)
    _last[branch] = entry
    _last.move_to_end(branch)
    while len(_last) > _KEPT:
        _last.popitem(last=False)
    if isinstance(info, dict):
        info.setdefault(KEY, {})[node] = entry


def _queued(request: Any) -> Any:
    asked = _object(request)
    extra = _object(asked.setdefault("extra_data", {}))
    info = extra.get("extra_pnginfo")
    _object(info).pop(KEY, None)  # whatever a client claims, only what happened is recorded
    prompt = _object(asked.get("prompt"))
    # A node that leads to no output does not run: it may stand there from an earlier time.
    used = _leading_to(_outputs(prompt), prompt)
    ours = [node for node, one in used.items() if one.get("class_type") == APPLY]
    if ours and info is None:  # most callers of the API send none
        info = extra["extra_pnginfo"] = {}
    for node in ours:
        if (entry := _last.get(_branch(node, prompt))) is not None:
            _object(info).setdefault(KEY, {})[node] = entry
    return request


def _outputs(prompt: Mapping[str, Any]) -> list[str]:
    import nodes  # ComfyUI's

    kinds = nodes.NODE_CLASS_MAPPINGS
    return [
        node
        for node, one in prompt.items()
        if getattr(kinds.get(str(_object(one).get("class_type"))), "OUTPUT_NODE", False)
    ]


def _leading_to(ends: Iterable[str], prompt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Nodes and all that they take their inputs from, by id."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(ends)
    while waiting:
        name = waiting.pop()
        if name in found or name not in prompt:
            continue
        found[name] = _object(prompt[name])
        for value in _object(found[name].get("inputs")).values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                waiting.append(value[0])
    return found


def _object(value: Any) -> dict[str, Any]:
    """A JSON object; anything else that a client sends is ComfyUI's to refuse."""
    return value if isinstance(value, dict) else {}


def _branch(node: str, prompt: Mapping[str, Any]) -> str:
    """What leads to a node, as a digest: equal digests mean equal results."""
    parts = {
        name: [one.get("class_type"), one.get("inputs")]
        for name, one in _leading_to([node], prompt).items()
    }
    return hashlib.sha256(json.dumps([node, parts], sort_keys=True).encode()).hexdigest()
