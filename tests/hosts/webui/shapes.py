# SPDX-License-Identifier: GPL-3.0-or-later
"""The families of the hosts' small checkpoints, which no real model has.

Known to the core only where this is called: in the tests, and in the probe inside the host.
"""

from __future__ import annotations


def register() -> None:
    """Add them to the core's table."""
    from safegen_core.families import FAMILIES, Family

    depths = (2, (1, 1, 1, 0), 1, (0, 1, 1, 1))
    for name, channels in (("tiny", (32, 64, 128, 128)), ("mini", (320, 320, 320, 320))):
        FAMILIES[name] = Family(name, f"Tests' {name}", 768, channels, *depths)  # type: ignore[index]
