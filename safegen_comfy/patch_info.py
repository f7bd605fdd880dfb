# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Apply SafeGen node shows of what it did."""

from __future__ import annotations

from typing import Any

from ..safegen_core.fingerprint import SelfAttention
from ..safegen_core.header import printable
from ..safegen_core.trust import Trust
from .model import PREFIX, title
from .protect import Protection

Info = dict[str, Any]
"""`state`, `headline`, `facts` (label, value) and `notes`, as the front end draws them."""

_MATCH = {
    "green": "same weights as the patch's base",
    "amber": "a relative of the patch's base",
    "red": "not related to the patch's base",
    None: "unknown: the patch names no base",
}


def info(protection: Protection, trust: Trust, attention: SelfAttention, model: Any) -> Info:
    """Tell what is on a model now.

    Args:
        protection: from `protect`.
        trust: from `choose`.
        attention: of the model.
        model: from `protect`.
    """
    patch, fit = protection.loaded.patch, protection.fit
    state, headline = _state(protection)
    distance = "" if fit.distance is None else f" (distance {fit.distance:.3f})"
    facts = [
        ("patch", printable(protection.loaded.name)),
        ("family", attention.detected.family.title),
        ("base match", _MATCH[fit.match] + distance),
        ("coverage", f"{len(patch.deltas)} of {len(patch.scope)} declared tensors"),
        ("rank", ", ".join(map(str, patch.ranks)) or "whole"),
        ("strength", f"{_strength(protection):g}"),
        ("trust", f"{trust.level}: {trust.reason}"),
        ("id", protection.loaded.patch.id()[:12]),
    ]
    return {
        "state": state,
        "headline": headline,
        "facts": [list(fact) for fact in facts],
        "notes": _notes(protection, trust, attention, model),
    }


def unsupported(model: Any, error: Exception) -> Info:
    """Tell that a model went through as it is."""
    return {
        "state": "unsupported",
        "headline": f"Not protected: no patch can go on {title(model)}.",
        "facts": [["model", title(model)]],
        "notes": [getattr(error, "message", str(error))],
    }


def record(protection: Protection) -> dict[str, Any]:
    """What pictures record of it."""
    return {
        "patch": protection.loaded.name,
        "id": protection.loaded.patch.id(),
        "strength": _strength(protection),
        "baked": _is_baked(protection),
        "match": protection.fit.match,
    }


def _strength(protection: Protection) -> float:
    """What is on the model, whatever was asked for."""
    carried = protection.fit.carried
    return round(carried.amount, 2) if _is_baked(protection) and carried else protection.strength


def _is_baked(protection: Protection) -> bool:
    return protection.baked or (protection.strength == 0 and bool(protection.fit.carried))


def _state(protection: Protection) -> tuple[str, str]:
    name = printable(protection.loaded.name)
    if _is_baked(protection):
        return "baked", "The model carries this patch already (baked in); nothing was added."
    if protection.strength == 0:
        return "off", "Strength 0: the model is not protected."
    match protection.fit.match:
        case "green":
            return "green", f"Protected by {name}."
        case "amber":
            return "amber", f"Protected by {name}, made for a relative of this model: try it out."
        case "red":
            return "red", f"{name} was made for another model: it may protect nothing."
    return "unknown", f"{name} does not say which model it was made for: try it out."


def _notes(protection: Protection, trust: Trust, attention: SelfAttention, model: Any) -> list[str]:
    notes = []
    if trust.level == "untested":
        notes.append("Nobody has tested this patch here: look at what the model draws with it.")
    ours = {PREFIX + spec.ldm for spec in attention.detected.family.tensors()}
    others = sum(
        any(value is not protection.entries.get(key) for _, value, *_ in model.patches[key])
        for key in ours & set(model.patches)
    )
    if others:
        notes.append(
            f"LoRAs or merges before this node also change {others} self-attention tensors; the "
            "base match is judged without them."
        )
    return notes
