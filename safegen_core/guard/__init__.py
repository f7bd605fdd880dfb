# SPDX-License-Identifier: GPL-3.0-or-later
"""The door every picture passes before it leaves a host.

`release` decides, `render` gives what may leave. Neither ever raises for a picture, a policy or a
detector: whatever goes wrong withholds the picture and says that this was not a detection.
"""

from __future__ import annotations

from .judging import release
from .rendering import render
from .verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "release", "render"]
