# SPDX-License-Identifier: GPL-3.0-or-later
"""Always-on scripts, and the runner that calls their hooks; nobody notices one that fails."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any


@dataclass
class PostprocessBatchListArgs:
    images: list


@dataclass
class PostprocessImageArgs:
    image: Any


class ScriptRunner:
    def __init__(self):
        self.alwayson_scripts = []
        self.selectable_scripts = []

    def run(self, p, *args):
        if not args or not args[0]:
            return None
        return self.selectable_scripts[args[0] - 1].run(p, *args[1:])

    def _call(self, hook, *args, **kwargs):
        for script in self.alwayson_scripts:
            if hasattr(script, hook):
                with contextlib.suppress(Exception):
                    getattr(script, hook)(*args, **kwargs)

    def postprocess_batch_list(self, p, pp, **kwargs):
        self._call("postprocess_batch_list", p, pp, **kwargs)

    def postprocess_image(self, p, pp):
        self._call("postprocess_image", p, pp)

    def postprocess_image_after_composite(self, p, pp):
        self._call("postprocess_image_after_composite", p, pp)

    def postprocess(self, p, processed):
        self._call("postprocess", p, processed)
