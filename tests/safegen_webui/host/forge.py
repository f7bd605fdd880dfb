# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of the Forge family and its patchers, in Forge's spelling and in ComfyUI's."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import torch
from modules.denoiser import Denoiser


class KModel(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.diffusion_model = Denoiser(state)
        self.storage_dtype = torch.float32
        self.current_weight_patches_uuid = None


def _merged(weight, entries):
    total = weight.float()
    for strength, value, *_ in entries:
        total = total + strength * value[0].float()
    return torch.nn.Parameter(total.to(weight.dtype), requires_grad=False)


def _set(model, key, value):
    path, _, name = key.rpartition(".")
    setattr(model.get_submodule(path), name, torch.nn.Parameter(value, requires_grad=False))


class ForgePatcher:
    """Knows what is merged by names and strengths alone."""

    def __init__(self, model):
        self.model, self.lora_patches = model, {}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = SimpleNamespace(backup={}, loaded_hash=str([]))

    def clone(self):
        other = type(self)(self.model)
        other.lora_patches = self.lora_patches.copy()
        return other

    def add_patches(
        self, *, filename, patches, strength_patch=1.0, strength_model=1.0, online_mode=False
    ):
        there = {name for name, _ in self.model.named_parameters()}
        taken = {key for key in patches if key in there}
        self.lora_patches[(filename, strength_patch, strength_model, online_mode)] = {
            key: [[strength_patch, patches[key], strength_model, None, None]] for key in taken
        }
        return taken

    def load(self):
        loader, wanted = self.model.lora_loader, str(list(self.lora_patches))
        if wanted == loader.loaded_hash:
            return
        for key, weight in loader.backup.items():
            _set(self.model, key, weight)
        loader.backup = {}
        for patches in self.lora_patches.values():
            for key, entries in patches.items():
                weight = self.model.get_parameter(key)
                loader.backup.setdefault(key, weight.data.clone())
                _set(self.model, key, _merged(weight, entries))
        loader.loaded_hash = wanted


class ComfyPatcher:
    """Knows what is merged by a uuid."""

    def __init__(self, model, backup=None):
        self.model, self.patches = model, {}
        self.backup = {} if backup is None else backup
        self.patches_uuid = uuid.uuid4()

    def clone(self):
        other = type(self)(self.model, self.backup)
        other.patches = {key: list(entries) for key, entries in self.patches.items()}
        other.patches_uuid = self.patches_uuid
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        there = self.model.state_dict()
        taken = [key for key in patches if key in there]
        for key in taken:
            entry = (strength_patch, patches[key], strength_model, None, None)
            self.patches.setdefault(key, []).append(entry)
        self.patches_uuid = uuid.uuid4()
        return taken

    def load(self):
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        for key, kept in self.backup.items():
            _set(self.model, key, kept.weight)
        self.backup.clear()
        for key, entries in self.patches.items():
            weight = self.model.get_parameter(key)
            self.backup[key] = SimpleNamespace(weight=weight.data.clone())
            _set(self.model, key, _merged(weight, entries))
        self.model.current_weight_patches_uuid = self.patches_uuid


class Objects:
    def __init__(self, unet):
        self.unet = unet

    def shallow_copy(self):
        return Objects(self.unet)


class Engine:
    """What the Forge family has for a model."""

    def __init__(self, state, kind=ForgePatcher, name="a"):
        self.forge_objects_original = Objects(kind(KModel(state)))
        self.forge_objects = self.forge_objects_original.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects_original.shallow_copy()
        self.current_lora_hash = "[]"
        self.sd_checkpoint_info = SimpleNamespace(name_for_extra=name, title=name)

    def activate(self, **loras):
        """What Lora does before a request: name -> weight name -> delta."""
        if self.current_lora_hash != str(list(loras)):
            self.current_lora_hash = str(list(loras))
            unet = self.forge_objects_original.unet
            for name, deltas in loras.items():
                unet = unet.clone()
                patches = {key: (delta,) for key, delta in deltas.items()}
                named = {"filename": name} if isinstance(unet, ForgePatcher) else {}
                unet.add_patches(patches=patches, **named)
            self.forge_objects_after_applying_lora = Objects(unet)
        self.forge_objects = self.forge_objects_after_applying_lora.shallow_copy()

    def sample(self):
        self.forge_objects.unet.load()
        return self.forge_objects.unet.model.diffusion_model()
