# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the host's conditionings come from: `StableDiffusionProcessing`, as far as that goes."""

from __future__ import annotations

from typing import ClassVar

from tests.safegen_webui.host import prompt_parser


class StableDiffusionProcessing:
    cached_uc: ClassVar = [None, None]
    cached_c: ClassVar = [None, None]
    cached_hr_c: ClassVar = [None, None]
    scripts = None

    def __init__(self, *prompts, negative="", hr_prompts=(), cfg_scale=7.0, steps=4, **fields):
        self.prompts, self.hr_prompts = list(prompts), list(hr_prompts)
        self.negative_prompts = [negative] * len(prompts)
        self.cfg_scale, self.steps, self.width, self.height = cfg_scale, steps, 64, 64
        vars(self).update(fields)

    def cached_params(self, required_prompts, *rest):
        from modules import shared

        return (required_prompts, *rest, shared.sd_model, shared.opts.emphasis)

    def get_conds_with_caching(
        self, function, required_prompts, steps, caches, extra_network_data, hires_steps=None
    ):
        from modules import shared

        old = shared.opts.use_old_scheduling
        params = self.cached_params(required_prompts, steps, extra_network_data, hires_steps, old)
        for cache in caches:
            if cache[0] is not None and params == cache[0]:
                return cache[1]
        cache = caches[0]
        cache[1] = function(shared.sd_model, required_prompts, steps, hires_steps, old)
        cache[0] = params
        return cache[1]

    def setup_conds(self):
        prompts = prompt_parser.SdConditioning(self.prompts, width=64, height=64)
        negative = prompt_parser.SdConditioning(
            self.negative_prompts, is_negative_prompt=True, width=64, height=64
        )
        self.uc = self.get_conds_with_caching(
            prompt_parser.get_learned_conditioning, negative, self.steps, [self.cached_uc], {}
        )
        self.c = self.get_conds_with_caching(
            prompt_parser.get_multicond_learned_conditioning, prompts, self.steps,
            [self.cached_c], {},
        )  # fmt: skip

    def calculate_hr_conds(self):
        prompts = prompt_parser.SdConditioning(self.hr_prompts, width=128, height=128)
        self.hr_c = self.get_conds_with_caching(
            prompt_parser.get_multicond_learned_conditioning, prompts, self.steps,
            [self.cached_hr_c, self.cached_c], {}, 3,
        )  # fmt: skip
