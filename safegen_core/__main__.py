# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m safegen_core` is `safegen`."""

import sys

from .cli import main

sys.exit(main())
