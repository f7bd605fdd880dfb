# SPDX-License-Identifier: GPL-3.0-or-later
"""What a patch declares to cover, and what of it a model has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import PatchError
from .families import Family

_SCOPES = ("attn1", "attn1.weight")


@dataclass(frozen=True)
class Coverage:
    """What happened when a patch met a model, judged against the patch's declared scope.

    Attributes:
        matched: tensors in scope that the patch has and the model has with the right shape.
        missing: tensors in scope that are not matched.
        unexpected: tensors the patch changes outside its declared scope.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether everything declared is matched and nothing else is there."""
        return bool(self.matched) and not self.missing and not self.unexpected

    def require_whole(self, what: str = "The patch") -> None:
        """Raise unless the patch covers all it declares.

        Raises:
            PatchError: `patch_coverage`.
        """
        if self.whole:
            return
        total = len(self.matched) + len(self.missing)
        example = (self.missing or self.unexpected or ("nothing",))[0]
        why = "is missing" if self.missing else "is outside its declared scope"
        raise PatchError(
            "patch_coverage",
            f"{what} matches {len(self.matched)} of {total} self-attention tensors "
            f"({example} {why}). A partly applied safety patch protects nobody, so it is not "
            "applied: check that patch and model belong together and are complete.",
        )


def declare(family: Family, names: Sequence[str]) -> str:
    """The scope of tensors `names` (canonical order) as metadata: a word, else a JSON list."""
    for word in _SCOPES:
        if list(parse_scope(family, word)) == list(names):
            return word
    return json.dumps(list(names))


def parse_scope(family: Family, text: str) -> tuple[str, ...]:
    """Canonical tensor names, in canonical order, from what `declare` wrote.

    Raises:
        PatchError: `patch_scope`.
    """
    if text == "attn1":
        return tuple(family.specs)
    if text == "attn1.weight":
        return family.weight_names()
    try:
        names = json.loads(text)
        listed = set(names) if isinstance(names, list) else set()
    except (ValueError, TypeError, RecursionError):
        listed = set()
    if not listed or not listed <= set(family.specs):
        raise PatchError(
            "patch_scope", "The patch's declared scope is not a list of self-attention tensors."
        )
    return tuple(name for name in family.specs if name in listed)
