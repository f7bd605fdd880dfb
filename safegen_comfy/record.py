# SPDX-License-Identifier: GPL-3.0-or-later
"""Every picture records which patch protected its model, in what strength.

ComfyUI writes the entries of a prompt's `extra_pnginfo` into the pictures it saves. `Apply SafeGen`
puts its entry there when it runs. From ComfyUI's cache it does not run; then the entry of the last
time is put in when the prompt is queued, told by the part of the graph that leads to the node.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
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


def _queued(request: dict[str, Any]) -> dict[str, Any]:
    prompt = request.get("prompt")
    ours = [
        node
        for node, value in (prompt.items() if isinstance(prompt, dict) else ())
        if isinstance(value, dict) and value.get("class_type") == APPLY
    ]
    if ours:
        extra = request.setdefault("extra_data", {})
        info = extra.get("extra_pnginfo")
        if info is None:  # most callers of the API send none
            info = extra["extra_pnginfo"] = {}
        # Whatever a client claims here, only what happened is recorded.
        info[KEY] = {}
        for node in ours:
            if (entry := _last.get(_branch(node, prompt))) is not None:
                info[KEY][node] = entry
    return request


def _branch(node: str, prompt: Mapping[str, Any]) -> str:
    """The part of a graph that leads to a node, as one line: equal lines give equal results."""
    seen: dict[str, Any] = {}
    waiting = [node]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in prompt:
            continue
        one = prompt[name]
        seen[name] = [one.get("class_type"), one.get("inputs", {})]
        for value in one.get("inputs", {}).values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                waiting.append(value[0])
    return json.dumps([node, seen], sort_keys=True, default=str)
