# SPDX-License-Identifier: GPL-3.0-or-later
"""Which installed patch suits a model? Only trusted ones are chosen without being asked for.

A stranger's file that merely claims to protect must not become the protection by lying around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import PatchError, SafeGenError
from ..families import Family
from ..fingerprint import Fingerprint, SelfAttention, digest_of, take_sketch
from ..header import printable, read_header
from ..place import command
from . import Trust, judge
from .installed import IN_LORAS, Loaded, load
from .ledger import Ledger

_BEST = ("tested", "signed", "made", "chosen")
"""Reasons for trust, the one that says most about this model first."""

_TOLD = 10  # names that a message lists


@dataclass(frozen=True)
class Ways:
    """How a host's people go on when no patch could be chosen, in that host's words.

    Attributes:
        folder: where patches go.
        by_name: what chooses one by name, as in "with 'Load SafeGen Patch'".
        by_itself: what chooses by itself, as in "Apply SafeGen".
        unrelated: what comes of naming a patch that was not made for the model: a sentence.
        meanwhile: what protects without a patch: a sentence.
    """

    folder: Path
    by_name: str
    by_itself: str
    unrelated: str
    meanwhile: str

    def no_patch(self) -> str:
        """No patch is installed: how to come by one."""
        return (
            f"No SafeGen patch is installed. Patches go into {self.folder}; none is shipped. "
            f"{self.to_one()}"
        )

    def to_one(self) -> str:
        """How to come by a patch."""
        extract = command(
            *("patch", "extract", "--base", "sd-v1-4.safetensors"),
            *("--safe", "safegen-unet.safetensors"),
            *("--out", self.folder / "safegen-sd14.safetensors"),
        )
        return (
            "Ways to one: (1) For Stable Diffusion 1.x, take the authors' out of their release of "
            f"the method (arXiv 2404.06666): {extract} (2) Train one for your model: "
            f"{command('train', '--help')} (3) {self.meanwhile}"
        )


def trust_of(loaded: Loaded, attention: SelfAttention, ledger: Ledger) -> Trust:
    """Why a patch may be used on this model without being asked for, or that it may not."""
    family = attention.detected.family
    return judge(
        loaded.patch,
        loaded.path,
        ledger,
        ledger.keys_folder,
        lambda: digest_of(attention.load, family),
    )


def choose(
    attention: SelfAttention,
    names: Callable[[], list[str]],
    find: Callable[[str], Path],
    ledger: Ledger,
    ways: Ways,
) -> tuple[Loaded, Trust]:
    """The nearest trusted patch for a model: same weights before relatives, then by trust.

    Args:
        attention: of the model.
        names: gives the installed patches as the host's menus show them.
        find: gives the file of one of them.
        ledger: what is trusted here.
        ways: for the messages.

    Raises:
        PatchError: `patch_none` when no installed patch is for such a model, `patch_untested` when
            only untrusted ones are; the message names them.
    """
    installed = _found(names(), find)
    family = attention.detected.family
    sketch = take_sketch(attention.sample, family)
    near = []
    for name, base in _for_family(family, installed):
        if base is not None and (match := base.match(sketch)) != "red":
            near.append((match == "amber", base.distance(sketch), name))
    untested: list[str] = []
    best: tuple[tuple, Loaded, Trust] | None = None
    for amber, distance, name in sorted(near):
        try:  # one at a time: many patches together need more memory than a model
            loaded = load(name, installed[name])
            loaded.patch.coverage(attention.shapes).require_whole()
        except SafeGenError:  # as below: chosen by name, it says what is wrong with it
            continue
        found = trust_of(loaded, attention, ledger)
        if not found.trusted:
            untested.append(name)
            continue
        rank = (amber, _BEST.index(found.level), distance, name.startswith(IN_LORAS), name)
        if best is None or rank < best[0]:
            best = rank, loaded, found
    if best is not None:
        return best[1:]
    if untested:
        raise PatchError(
            "patch_untested",
            f"Installed patches that fit this model are untested here: {_listed(untested)}. To use "
            f"one as it is, choose it {ways.by_name}. To let {ways.by_itself} choose it by itself "
            f"from now on: {command('patch', 'trust', installed[untested[0]])}",
        )
    raise PatchError(
        "patch_none",
        f"No installed patch was made for this {family.title} model or a relative of it. "
        + (_others(family, installed, ways) if installed else ways.no_patch()),
    )


def _found(names: list[str], find: Callable[[str], Path]) -> dict[str, Path]:
    found = {}
    for name in names:
        try:
            found[name] = find(name)
        except SafeGenError:  # removed since it was listed
            continue
    return found


def _for_family(
    family: Family, installed: Mapping[str, Path]
) -> Iterator[tuple[str, Fingerprint | None]]:
    """Names and bases of the installed patches for a family, from their headers alone."""
    for name, path in installed.items():
        try:
            told = read_header(path).metadata
            if told.get("safegen.family") != family.name:
                continue
            base = told.get("safegen.base")
            yield name, Fingerprint.from_json(base) if base else None
        except SafeGenError:  # a damaged file is no candidate; chosen by name, it says what it is
            continue


def _others(family: Family, installed: Mapping[str, Path], ways: Ways) -> str:
    names = [name for name, _ in _for_family(family, installed)]
    if not names:
        return f"None that is installed is for {family.title}. {ways.to_one()}"
    return f"Installed for {family.title}: {_listed(names)}. {ways.unrelated}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(map(printable, names[:_TOLD])) + more
