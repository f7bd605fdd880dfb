# SPDX-License-Identifier: GPL-3.0-or-later
r"""Run the command line on a host's own Python, without installing anything.

    python_embeded\python.exe ComfyUI\custom_nodes\safegen\safegen.py doctor

An embedded or isolated Python (`python -I`) does not look beside the script for modules, so the
script's folder is put on the path here. Links are kept: a pack that is linked into a host still
knows in which host it lies.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

    from safegen_core.cli import main

    sys.exit(main())
