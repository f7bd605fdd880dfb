# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen: safety patches for Stable Diffusion models.

Nothing happens at import: no host, no network, no torch. Import the rooms you need
(`safegen_core.patch`, `safegen_core.apply`, ...); `docs/architecture.md` lists them.
"""

__version__ = "0.1.0"
