# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m safegen_core.train config.toml [flags]` is `safegen train config.toml [flags]`."""

from __future__ import annotations

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
