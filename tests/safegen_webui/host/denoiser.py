# SPDX-License-Identifier: GPL-3.0-or-later
"""A denoiser with the names of A1111's, of which only the self-attention does anything."""

from __future__ import annotations

import sys

import torch

from safegen_core.families import FAMILIES

PREFIX = "model.diffusion_model."


class Layer(torch.nn.Linear):
    """A layer that the built-in Lora knows, if there is one."""

    def forward(self, given):
        networks = sys.modules.get("networks")
        if networks is None or not hasattr(self, "network_layer_name"):
            return self._plain(given)
        if networks.functional:
            return networks.network_forward(self, given, self._plain)
        networks.network_apply_weights(self)
        return self._plain(given)

    def load_state_dict(self, *args, **kwargs):
        if "networks" in sys.modules:
            sys.modules["networks"].network_reset_cached_weight(self)
        return super().load_state_dict(*args, **kwargs)

    def _plain(self, given):
        return torch.nn.functional.linear(
            given,
            self.weight.to(given.dtype),
            None if self.bias is None else self.bias.to(given.dtype),
        )


class Denoiser(torch.nn.Module):
    """Built from the tensors of a checkpoint.

    Called with what every layer is to be given, `[n]`, or nothing; gives what they all give.
    """

    def __init__(self, state):
        super().__init__()
        specs = {spec.ldm: spec for spec in FAMILIES["lab"].tensors()}
        for name, tensor in state.items():
            if not name.startswith(PREFIX):
                continue
            path = name[len(PREFIX) :]
            if path in specs and path.endswith(".weight"):
                has_bias = f"{name.removesuffix('weight')}bias" in state
                layer = Layer(*reversed(tensor.shape), bias=has_bias).to(tensor.dtype)
                layer.network_layer_name = "diffusion_model_" + path.removesuffix(
                    ".weight"
                ).replace(".", "_")
                self._hang(path.removesuffix(".weight"), layer)
            elif path not in specs:
                holder = torch.nn.Module()
                holder.weight = torch.nn.Parameter(tensor.clone(), requires_grad=False)
                self._hang(path.removesuffix(".weight"), holder)
        self.requires_grad_(False)
        self.fill(state)

    def fill(self, state):
        """Load a checkpoint into the layers, each by its own `load_state_dict`."""
        for path, layer in self.layers():
            names = {"weight": f"{PREFIX}{path}.weight", "bias": f"{PREFIX}{path}.bias"}
            layer.load_state_dict({n: state[full] for n, full in names.items() if full in state})

    def layers(self):
        return [(path, one) for path, one in self.named_modules() if isinstance(one, Layer)]

    def forward(self):
        return torch.cat([one(torch.linspace(-1, 1, one.in_features)) for _, one in self.layers()])

    def _hang(self, path, module):
        parent = self
        *above, last = path.split(".")
        for name in above:
            if name not in parent._modules:
                parent.add_module(name, torch.nn.Module())
            parent = parent._modules[name]
        parent.add_module(last, module)
