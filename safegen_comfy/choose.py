# SPDX-License-Identifier: GPL-3.0-or-later
"""Which installed patch suits a model? Only trusted ones are chosen without being asked for.

A stranger's file that merely claims to protect must not become the protection by lying around.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..safegen_core import trust
from ..safegen_core.errors import PatchError, SafeGenError
from ..safegen_core.families import Family
from ..safegen_core.fingerprint import Fingerprint, SelfAttention, digest_of, take_sketch
from ..safegen_core.header import printable, read_header
from ..safegen_core.trust import Trust
from . import folders, ways
from .types import Loaded

_BEST = ("tested", "signed", "made", "chosen")
"""Reasons for trust, the one that says most about this model first."""

_TOLD = 10  # names that a message lists


def trust_of(loaded: Loaded, attention: SelfAttention) -> Trust:
    """Why a patch may be used on this model without being asked for, or that it may not."""
    family, ledger = attention.detected.family, folders.ledger()
    return trust.judge(
        loaded.patch,
        loaded.path,
        ledger,
        ledger.keys_folder,
        lambda: digest_of(attention.load, family),
    )


def chosen(loaded: Loaded | None, attention: SelfAttention) -> tuple[Loaded, Trust]:
    """The patch that was chosen by name, else the one to choose, and its trust.

    Raises:
        PatchError: as `choose`.
    """
    return choose(attention) if loaded is None else (loaded, trust_of(loaded, attention))


def choose(attention: SelfAttention) -> tuple[Loaded, Trust]:
    """The nearest trusted patch for a model: same weights before relatives, then by trust.

    Args:
        attention: of the model.

    Raises:
        PatchError: `patch_none` when no installed patch is for such a model, `patch_untested` when
            only untrusted ones are; the message names them.
    """
    family = attention.detected.family
    sketch = take_sketch(attention.sample, family)
    near = []
    for name, base in _for_family(family):
        match = base.match(sketch) if base else "red"
        if match != "red":
            near.append((match == "amber", base.distance(sketch), name))
    untested: list[str] = []
    best: tuple[tuple, Loaded, Trust] | None = None
    for amber, distance, name in sorted(near):
        try:  # one at a time: many patches together need more memory than a model
            loaded = folders.load(name)
            loaded.patch.coverage(attention.shapes).require_whole()
        except SafeGenError:  # as below: chosen by name, it says what is wrong with it
            continue
        found = trust_of(loaded, attention)
        if not found.trusted:
            untested.append(name)
            continue
        rank = (amber, _BEST.index(found.level), distance, name.startswith(folders.IN_LORAS), name)
        if best is None or rank < best[0]:
            best = rank, loaded, found
    if best is None:
        raise PatchError("patch_untested", _untested(untested)) if untested else _none(family)
    return best[1:]


def _for_family(family: Family) -> Iterator[tuple[str, Fingerprint | None]]:
    """Names and bases of the installed patches for a family, from their headers alone."""
    for name in folders.patch_names():
        try:
            told = read_header(folders.find_patch(name)).metadata
            if told.get("safegen.family") != family.name:
                continue
            base = told.get("safegen.base")
            yield name, Fingerprint.from_json(base) if base else None
        except SafeGenError:  # a damaged file is no candidate; chosen by name, it says what it is
            continue


def _none(family: Family) -> PatchError:
    return PatchError(
        "patch_none",
        f"No installed patch was made for this {family.title} model or a relative of it. "
        + (_others(family) if folders.patch_names() else ways.no_patch()),
    )


def _others(family: Family) -> str:
    names = [name for name, _ in _for_family(family)]
    if not names:
        return f"Put one for {family.title} into {folders.own()}, or train one for this model."
    return (
        f"Installed for {family.title}: {_listed(names)}. One can still be chosen with "
        "'Load SafeGen Patch', but it may damage this model and protect nothing: look at the "
        "pictures."
    )


def _untested(names: list[str]) -> str:
    return (
        f"Installed patches that fit this model are untested here: {_listed(names)}. To use one "
        "as it is, choose it with 'Load SafeGen Patch'. To let Apply SafeGen choose it by itself "
        f"from now on: {ways.command('patch', 'trust', folders.find_patch(names[0]))}"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(map(printable, names[:_TOLD])) + more
