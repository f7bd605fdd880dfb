# SPDX-License-Identifier: GPL-3.0-or-later
"""Student and teacher: one UNet, with the delta on or off; and how it is made to run fast or small.

The frozen weights are kept in the precision of the arithmetic (or in fp8), never as float32 that
autocast copies on every use: those copies are the greater part of the official trainer's memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch import nn

from ..errors import ConfigError
from . import config
from .base import Prompts
from .delta import TrainedDelta

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """The denoiser an objective calls (`objectives.Denoiser`).

    Args:
        unet: the frozen base, with `delta` attached.
        delta: what makes the student.
        prompts: the table that prompt rows point into, on the UNet's device.
        beside: what an inpainting UNet sees beside the latent, `[5, h, w]`; None for others.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        delta: TrainedDelta,
        prompts: Prompts,
        beside: torch.Tensor | None = None,
    ) -> None:
        parameter = unet.conv_out.weight
        self.unet, self.delta, self.dtype, self.graphs = unet, delta, parameter.dtype, False
        self.prompts = prompts.to(parameter.device, self.dtype)
        self.beside = None if beside is None else beside.to(parameter.device, self.dtype)[None]

    @property
    def context_shape(self) -> tuple[int, int]:
        """Shape of one prompt's states, `(T, D)`."""
        return self.prompts.hidden.shape[1], self.prompts.hidden.shape[2]

    def __call__(
        self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The student's prediction `[B, C, h, w]`, float32, with gradient.

        `shift`, `[B, T, D]`, is added to the prompts' states.
        """
        z_t = z_t.to(self.dtype)
        if self.beside is not None:
            z_t = torch.cat([z_t, self.beside.expand(len(z_t), -1, -1, -1)], dim=1)
        told = self.prompts.kwargs(c)
        if shift is not None:
            told["encoder_hidden_states"] = told["encoder_hidden_states"] + shift.to(self.dtype)
        predicted = self.unet(z_t, t, return_dict=False, **told)[0].float()
        # what a recorded CUDA graph gives is overwritten when it is played again
        return predicted.clone() if self.graphs else predicted

    def teacher(self, z_t: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The base's prediction, without gradient."""
        with self.delta.teacher():
            return self(z_t, t, c)


def device_of(settings: config.Compute) -> torch.device:
    """Where to compute.

    Raises:
        ConfigError: `config_device`, this torch cannot use what was asked for.
    """
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = settings.device
    if name == "auto":
        name = next(device for device, there in usable.items() if there)
    if not usable[name]:
        raise ConfigError("config_device", f"compute.device is {name}, which this torch cannot use")
    if name == "cuda":  # of several processes each has its own
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device(name)


def dtype_of(settings: config.Compute, device: torch.device) -> torch.dtype:
    """The precision of the network's arithmetic."""
    if settings.precision != "auto":
        return _DTYPES[settings.precision]
    if device.type != "cuda":
        return torch.float32
    # is_bf16_supported() also counts emulation, which is slower than float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def make_lean(unet: nn.Module, settings: config.Compute, dtype: torch.dtype) -> None:
    """Ready a frozen UNet for training: memory layout, storage, recomputed activations.

    To be called before a delta is attached: fp8 storage must not touch the trained tensors, nor
    the self-attention whose weights they are added to.
    """
    unet_: Any = unet
    if next(unet.parameters()).device.type == "cuda":
        unet_.to(memory_format=torch.channels_last)
    if settings.storage == "fp8":
        # Norms and embeddings as diffusers itself leaves out; attn1 carries the delta. A
        # convolution would meet its weight cast back to 8 bits when it is differentiated.
        unet_.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=dtype,
            skip_modules_pattern=("attn1", "norm", "conv", "proj_", "time_", "add_embedding"),
        )
    if settings.checkpointing:
        unet_.enable_gradient_checkpointing()


def compile_network(network: Network, settings: config.Compute) -> None:
    """Let torch.compile take the UNet over, if asked for; after everything else.

    "graphs" records CUDA graphs, which pays where launching kernels is what takes the time: small
    batches on fast cards.
    """
    if settings.compile == "off":
        return
    # Student and teacher, each with some sizes of batch: more forms than are allowed by default,
    # beyond which the network would silently run as it is.
    dynamo: Any = torch._dynamo.config
    # its name before torch 2.6
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, 64)
    network.graphs = settings.compile == "graphs" and network.prompts.hidden.is_cuda
    mode = "reduce-overhead" if network.graphs else None
    network.unet.compile(mode=mode, dynamic=False)
