# SPDX-License-Identifier: GPL-3.0-or-later
"""The families of the hosts' small checkpoints, which no real model has.

Known to the core only where this is called: in the tests, and in the probe inside the host.
"""

from __future__ import annotations


def register() -> None:
    """Add them to the core's table."""
    from safegen_core.families import FAMILIES, Family

    depths = (2, (1, 1, 1, 0), 1, (0, 1, 1, 1))
    for name, context, channels in (
        ("tiny", 768, (32, 64, 128, 128)),
        ("mini", 768, (320, 320, 320, 320)),
        ("minisd2", 1024, (320, 320, 320, 320)),
    ):
        FAMILIES[name] = Family(name, f"Tests' {name}", context, channels, *depths)  # type: ignore[index]
    deep = (2, (0, 2, 10), 10, (10, 2, 0))
    FAMILIES["minixl"] = Family("minixl", "Tests' minixl", 2048, (320, 320, 320), *deep)  # type: ignore[index]
