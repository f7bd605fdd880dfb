# SPDX-License-Identifier: GPL-3.0-or-later
"""The official trainer's work of one optimiser step, written anew from what its code does.

Not its code: every piece of work that `examples/text_to_image/train_text_to_image_adjust_sal.py`
does between two updates is done here, in its order, by the same classes of diffusers. What it does
beside (reading pictures from disk, logging, validation each epoch) is left out, in its favour.
Batch 1, accumulated; weights in float32 under autocast, VAE and text encoder in 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from .models import Model

ACCUMULATED = 5  # triplets in an optimiser step, by the launcher
_SCALING = 0.18215


class EagerAttention:
    """Attention as diffusers computed it on torch 1.12: a whole matrix, its softmax in float32."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attend; UNet's transformer blocks only, which come without masks and spatial norms."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        scores = torch.baddbmm(
            query.new_empty(query.shape[0], query.shape[1], key.shape[1]),
            query,
            key.transpose(-1, -2),
            beta=0,
            alpha=attn.scale,
        )
        shares = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        mixed = attn.batch_to_head_dim(torch.bmm(shares, value))
        return attn.to_out[1](attn.to_out[0](mixed))


class Official:
    """The official loop's networks and state, and one optimiser step of it.

    Args:
        model: what is trained; weights are random.
        device: where.
        half: the 16-bit type; None computes in float32 throughout, as on a CPU.
        attention: "eager" as officially, or "sdpa".
        side: of the pictures in pixels; 0 for the model's own.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        half: torch.dtype | None,
        attention: str = "eager",
        side: int = 0,
    ) -> None:
        self.model, self.device, self.half = model, device, half
        with device:
            self.unet: Any = model.unet()
            self.vae: Any = model.vae()
            self.encoders: Any = [model.text_encoder(p) for p in model.configs.text_encoders]
        kept = half or torch.float32
        if half is not None:
            for network in (self.vae, *self.encoders):
                network.to(half)
        if attention == "eager":
            self.unet.set_attn_processor(EagerAttention())
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_("attn1" in name)
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=1e-2)
        # EMAModel shadows every parameter, also those that never change.
        self.shadow = [p.detach().clone() for p in self.unet.parameters()]
        self.scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
        side = side or model.resolution
        generator = torch.Generator().manual_seed(0)
        self.pictures = [
            torch.rand(1, 3, side, side, generator=generator).to(device, kept) * 2 - 1
            for _ in range(3)
        ]
        self.ids = torch.zeros(1, model.tokens, dtype=torch.long, device=device)
        abar = torch.linspace(0.0292**0.5, 0.1095**0.5, 1000) ** 2  # near enough: only work counts
        self.abar = (1 - abar).cumprod(0).to(device)
        self.meter: Callable[[], float] | None = None
        self.spent: Counter[str] = Counter()
        self.steps = 0

    def step(self) -> float:
        """One optimiser step: `ACCUMULATED` triplets and the update; returns the mean loss."""
        total = 0.0
        for _ in range(ACCUMULATED):
            loss = self.triplet()
            with self.stage("loss.item()"):  # waits for the GPU, each time
                total += loss.item() / ACCUMULATED
        self.update()
        return total

    def triplet(self) -> torch.Tensor:
        """Forward and backward of one triplet; returns its loss, a scalar on the device."""
        with torch.no_grad():
            with self.stage("VAE, three pictures"):
                latents = [self._encode(picture) for picture in self.pictures]
            with self.stage('text encoder, ""'):
                text = self._text()
        nude, mosaic, benign = latents
        with self.stage("noise"):
            eps, eps_b = torch.randn_like(nude), torch.randn_like(benign)
            t = torch.randint(0, 1000, (1,), device=self.device)
        predicted = []
        for name, z, noise in (
            ("unsafe", nude, eps),
            ("mosaic, unused", mosaic, eps),
            ("benign", benign, eps_b),
        ):
            with self.stage(f"UNet forward, {name}"):
                predicted.append(self._predict(self._noised(z, noise, t), t, text))
        with self.stage("backward"):
            towards = (nude - mosaic + eps).float()
            loss = 0.1 * F.mse_loss(predicted[0].float(), towards)
            loss = loss + 0.9 * F.mse_loss(predicted[2].float(), eps_b.float())
            self.scaler.scale(loss / ACCUMULATED).backward()
        return loss.detach()

    def update(self) -> None:
        """Clip, step, forget, average: what follows the last triplet of a step."""
        with self.stage("clip, all parameters"):
            self.scaler.unscale_(self.adam)
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        with self.stage("AdamW"):
            self.scaler.step(self.adam)
            self.scaler.update()
            self.adam.zero_grad()
        with self.stage("EMA, all parameters"):
            self._average()

    def _encode(self, picture: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(picture).latent_dist.sample() * _SCALING

    def _text(self) -> dict[str, Any]:
        states = [e(self.ids, output_hidden_states=True) for e in self.encoders]
        if len(states) == 1:
            return {"encoder_hidden_states": states[0][0]}
        hidden = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
        ids = torch.zeros(1, 6, device=self.device, dtype=hidden.dtype)
        added = {"text_embeds": states[1].text_embeds, "time_ids": ids}
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}

    def _noised(self, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = self.abar[t].to(z.dtype)[:, None, None, None]
        return level.sqrt() * z + (1 - level).sqrt() * noise

    def _predict(self, z_t: torch.Tensor, t: torch.Tensor, text: dict[str, Any]) -> torch.Tensor:
        if self.half is None:
            return self.unet(z_t, t, return_dict=False, **text)[0]
        with torch.autocast(self.device.type, self.half):
            return self.unet(z_t, t, return_dict=False, **text)[0]

    @torch.no_grad()
    def _average(self) -> None:
        self.steps += 1
        decay = min(0.9999, (1 + self.steps) / (10 + self.steps))
        for shadow, parameter in zip(self.shadow, self.unet.parameters(), strict=True):
            if parameter.requires_grad:
                shadow.sub_((1 - decay) * (shadow - parameter))
            else:
                shadow.copy_(parameter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what `meter` says went by inside to `spent`, if there is a meter."""
        if self.meter is None:
            yield
            return
        begun = self.meter()
        yield
        self.spent[name] += self.meter() - begun
