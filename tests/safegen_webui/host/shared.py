# SPDX-License-Identifier: GPL-3.0-or-later
"""Options, flags and state that the whole host shares."""

from __future__ import annotations

from types import SimpleNamespace

from modules.shared_state import State


class OptionInfo:
    def __init__(self, default, label, component, component_args, *, section, restrict_api=False):
        self.default, self.label, self.section = default, label, section
        self.component, self.component_args = component, component_args
        self.restrict_api, self.reloads = restrict_api, False

    def needs_reload_ui(self):
        self.reloads = True
        return self


class Options(SimpleNamespace):
    def add_option(self, key, info):
        labels[key] = info
        if not hasattr(self, key):
            setattr(self, key, info.default)


labels: dict[str, OptionInfo] = {}
opts = Options(
    samples_save=True,
    samples_format="png",
    enable_pnginfo=True,
    return_grid=True,
    grid_save=True,
    return_mask=False,
    save_mask=False,
    return_mask_composite=False,
    save_mask_composite=False,
    save_images_before_highres_fix=False,
    save_images_before_face_restoration=False,
    save_images_before_color_correction=False,
    save_init_img=False,
    live_previews_enable=True,
    show_progress_grid=True,
)
cmd_opts = SimpleNamespace(safegen_dir=None, safegen_policy=None, api_auth=None, gradio_auth=None)
state = State()
sd_model = None
