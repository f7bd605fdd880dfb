# SPDX-License-Identifier: GPL-3.0-or-later
"""Training pictures that the base draws itself, as DUO does (Park et al., NeurIPS 2024).

For people without pictures, and so that nobody has to collect them. A named choice on the command
line (`--bootstrap`), never a key of a configuration file: a file from somewhere else must not make
a machine draw what its owner wants to be rid of.

What it draws follows from a phrase bank that ships with SafeGen: no free text. Pixels exist for one
picture at a time and only in memory (`pixels`); latents are what training goes on with. Nothing is
written, shown or logged but counts, so a crash or a kill leaves nothing behind. (What the operating
system itself writes when it swaps or hibernates is out of reach.) An operator's own function may
refuse any picture (`filter`).
"""

from __future__ import annotations

from .bank import prompts, shipped_bank
from .filter import Filter
from .procedure import Bootstrapped, bootstrap

__all__ = ["Bootstrapped", "Filter", "bootstrap", "prompts", "shipped_bank"]
