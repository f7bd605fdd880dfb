# SPDX-License-Identifier: GPL-3.0-or-later
"""The built-in Lora: puts LoRAs on when a layer is called, keeps backups and restores from them.

Imported as the top-level module `networks`, as the real one is.
"""

from __future__ import annotations

import torch

loaded_networks: list[Network] = []
functional = False  # the option lora_functional


class Network:
    """A LoRA: layer name -> delta of the weight."""

    def __init__(self, name, deltas, multiplier=1.0):
        self.name, self.deltas, self.unet_multiplier = name, deltas, multiplier


def network_restore_weights_from_backup(layer):
    for field, kept in (("weight", "network_weights_backup"), ("bias", "network_bias_backup")):
        backup = getattr(layer, kept, None)
        if backup is not None:
            getattr(layer, field).copy_(backup)


def network_reset_cached_weight(layer):
    layer.network_current_names = ()
    layer.network_weights_backup = None
    layer.network_bias_backup = None


def network_apply_weights(layer):
    wanted = tuple((one.name, one.unet_multiplier) for one in loaded_networks)
    current = getattr(layer, "network_current_names", ())
    if getattr(layer, "network_weights_backup", None) is None and wanted:
        if current:
            raise RuntimeError("no backup weights found and current weights are not unchanged")
        layer.network_weights_backup = layer.weight.to("cpu", copy=True)
        layer.network_bias_backup = None if layer.bias is None else layer.bias.to("cpu", copy=True)
    if current == wanted:
        return
    network_restore_weights_from_backup(layer)
    for one in loaded_networks:
        delta = one.deltas.get(layer.network_layer_name)
        if delta is not None:
            with torch.no_grad():
                kept = getattr(layer, "fp16_weight", None)
                weight = layer.weight if kept is None else kept.clone()
                updown = one.unet_multiplier * delta
                layer.weight.copy_((weight.to(updown.dtype) + updown).to(layer.weight.dtype))
    layer.network_current_names = wanted


def network_forward(layer, given, plain):
    if not loaded_networks:
        return plain(given)
    network_restore_weights_from_backup(layer)
    network_reset_cached_weight(layer)
    found = plain(given)
    for one in loaded_networks:
        delta = one.deltas.get(layer.network_layer_name)
        if delta is not None:
            found = found + one.unet_multiplier * torch.nn.functional.linear(given, delta)
    return found
