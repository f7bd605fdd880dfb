# SPDX-License-Identifier: GPL-3.0-or-later
"""A bar over pictures on the terminal, for work that may take minutes before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def picture_bar(what: str, total: int, progress: bool) -> tqdm:
    """A bar on standard error, if that is a terminal and `progress` is wanted; to be closed."""
    from tqdm import tqdm

    hidden = None if progress else True  # None lets tqdm look whether it is a terminal
    return tqdm(total=total, desc=what, unit="picture", leave=False, disable=hidden)
