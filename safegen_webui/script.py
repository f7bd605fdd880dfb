# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen among the host's scripts: its controls, and hooks that look at pictures early.

Nothing rests on the hooks, which the host calls behind a try: they spare work and give better
pictures. What must not fail is done in wraps (`requests`, `exits`).
"""

from __future__ import annotations

from typing import Any

from modules import scripts

from . import exits, ui


class SafeGen(scripts.Script):
    """Always there, in txt2img and img2img."""

    is_safegen = True

    def title(self) -> str:
        """As the API's `alwayson_scripts` names it, in any case."""
        return "SafeGen"

    def show(self, is_img2img: bool) -> Any:
        """Without being chosen from the menu of scripts."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The controls, in the order of `protection.Asked`; called several times by some hosts."""
        controls, self.infotext_fields, self.paste_field_names = ui.controls(self.elem_id)
        return controls

    def postprocess_batch_list(self, p: Any, pp: Any, *args: Any, **kwargs: Any) -> None:
        """What is withheld goes before others work on it."""
        exits.batch(p, pp)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        """The finished picture, before it is saved and put into a grid."""
        exits.finished(p, pp)
