# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints and models: loaded, switched, refilled, as A1111 does, with several in memory."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from modules import shared
from modules.denoiser import Denoiser

states: dict[str, dict] = {}
"""What "files" there are: name -> tensors."""

limit = 1  # the option sd_checkpoints_limit
loaded: list[Model] = []


class Model(torch.nn.Module):
    """A LatentDiffusion: what matters of it."""

    def __init__(self, name):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.diffusion_model = Denoiser(states[name])
        load_model_weights(self, name, None, None)


def load_model_weights(model, checkpoint_info, state_dict, timer):
    model.model.diffusion_model.fill(states[checkpoint_info])
    model.sd_checkpoint_info = SimpleNamespace(
        name_for_extra=checkpoint_info, title=checkpoint_info
    )


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    for model in loaded:
        if model.sd_checkpoint_info.name_for_extra == info and not forced_reload:
            shared.sd_model = model
            return model
    if len(loaded) < limit:
        loaded.append(Model(info))
        shared.sd_model = loaded[-1]
    else:
        load_model_weights(shared.sd_model, info, None, None)
    return shared.sd_model
