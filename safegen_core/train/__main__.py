# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m safegen_core.train config.toml [flags]`."""

from __future__ import annotations

import sys

from .flags import main

if __name__ == "__main__":
    sys.exit(main())
