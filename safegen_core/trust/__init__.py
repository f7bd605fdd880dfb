# SPDX-License-Identifier: GPL-3.0-or-later
"""May a patch be chosen without being named? docs/trust.md says it for people.

A patch that merely lies in a folder is *untested*: its header can claim any base, so a host that
picks patches by itself must know more than what the file says. It is trusted when it was made on
this machine, chosen by hand, signed by a key the user trusts, or tested by the user on the very
model it is about to change. Naming a patch is always allowed and needs no trust.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import SafeGenError
from ..header import printable
from .ledger import Entry, Ledger, default_path
from .signature import check_signature

if TYPE_CHECKING:
    from ..patch import Patch

__all__ = ["Entry", "Ledger", "Trust", "default_path", "judge", "remember", "remember_made"]

logger = logging.getLogger(__name__)

Level = Literal["made", "chosen", "signed", "tested", "untested"]


@dataclass(frozen=True)
class Trust:
    """Whether a patch may be chosen without being named, and why.

    Attributes:
        level: what it rests on; "untested" is no trust.
        reason: one plain phrase for people, safe to print.
    """

    level: Level
    reason: str

    @property
    def trusted(self) -> bool:
        """Whether the patch may be chosen without being named."""
        return self.level != "untested"


def judge(
    patch: Patch,
    path: str | os.PathLike[str],
    ledger: Ledger,
    keys_folder: Path,
    model_digest: Callable[[], str] | None = None,
) -> Trust:
    """Tell what trust in a patch rests on; whatever cannot be read gives none.

    Args:
        patch: as read from `path`.
        path: the patch file; its signature is looked for beside it.
        ledger: what this user made, chose and tested.
        keys_folder: public keys the user trusts, `*.pem`; see `Ledger.keys_folder`.
        model_digest: gives the `Fingerprint.digest` of the model to be changed; called only if the
            patch was tested on some model, because reading a model takes seconds.

    Raises:
        Nothing of its own. What `model_digest` raises, unless it is a SafeGenError, passes through.
    """
    patch_id = patch.id()
    try:
        entry = ledger.entries().get(patch_id)
    except SafeGenError as error:
        return Trust("untested", f"nothing is trusted: {error.message}")
    if entry is not None and entry.how == "made":
        return Trust("made", f"made on this machine on {entry.date}")
    if entry is not None and entry.how == "chosen":
        return Trust("chosen", f"trusted by hand on {entry.date}")
    signature = check_signature(path, patch_id, keys_folder)
    if signature.state == "good":
        return Trust("signed", signature.reason)
    if signature.state == "wrong":  # somebody altered something: a test of the deltas is no excuse
        return Trust("untested", signature.reason)
    if entry is None:
        known = "not made or tested here"
    elif model_digest is None:
        known = f"tested on {len(entry.models)} of your models, and trusted on these only"
    else:
        try:
            if model_digest() in entry.models:
                return Trust("tested", f"tested on this very model on {entry.date}")
            known = "tested, but not on this model"
        except SafeGenError as error:
            known = f"tested, but this model cannot be told: {error.message}"
    return Trust("untested", f"{known}, {signature.reason}")


def remember(patch: Patch, how: str, ledger: Ledger, model: str | None = None) -> None:
    """Enter a patch in the ledger under its own title; as `Ledger.record`."""
    ledger.record(patch.id(), how, title=patch.metadata.get("modelspec.title", ""), model=model)


def remember_made(patch: Patch, ledger: Ledger, parents: Iterable[tuple[str, Trust]] = ()) -> None:
    """Enter a patch written just now, unless it stems from one that is not trusted.

    A ledger that fails costs the entry, never the patch: a warning says so.

    Args:
        patch: as read back from its file; what was written has other rounding, and another id.
        ledger: where to enter it.
        parents: name and trust of every patch it was derived from.
    """
    for name, trust in parents:
        if not trust.trusted:
            logger.warning(
                "note: %s is untested (%s), so the new patch is too; if you trust it: "
                "safegen patch trust",
                printable(name, 1000),
                trust.reason,
            )
            return
    try:
        remember(patch, "made", ledger)
    except SafeGenError as error:
        logger.warning(
            "warning: the patch is written, but counts as untested: %s "
            "Mend that, then: safegen patch trust",
            error.message,
        )
