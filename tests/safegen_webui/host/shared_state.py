# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host is doing, and its live preview."""

from __future__ import annotations


class State:
    def __init__(self):
        self.begin()

    def begin(self, job="(unknown)"):
        self.job = job
        self.job_no = self.sampling_step = self.current_image_sampling_step = 0
        self.current_latent = self.current_image = None
        self.id_live_preview = 0
        self.interrupted = self.skipped = False

    def end(self):
        self.job = ""

    def nextjob(self):
        self.job_no += 1

    def set_current_image(self):
        from modules import shared

        if shared.opts.live_previews_enable:
            self.do_set_current_image()

    def do_set_current_image(self):
        if self.current_latent is None:
            return
        from modules import sd_samplers, shared

        try:
            if shared.opts.show_progress_grid:
                self.assign_current_image(sd_samplers.samples_to_image_grid(self.current_latent))
            else:
                self.assign_current_image(sd_samplers.sample_to_image(self.current_latent))
        except Exception:
            pass

    def assign_current_image(self, image):
        self.current_image = image
        self.id_live_preview += 1
