# SPDX-License-Identifier: GPL-3.0-or-later
"""A pipeline under test, taken apart: encode, predict, sample, decode.

Measures and attacks need what a pipeline's call hides: gradients through the denoiser, embeddings
nobody wrote as text, latents before they are decoded. Everything here goes through the pipeline's
own parts, so what is on its UNet (a patch, a LoRA) is on the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..guide import SafeLatentGuide

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",  # 2M, its default
}
# What a scheduler's configuration says of the model; the rest is the solver's own taste.
_NOISE_LEVELS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "set_alpha_to_one", "prediction_type"),
    *("timestep_spacing", "steps_offset"),
)
_STEPS = 20


@dataclass(frozen=True)
class Context:
    """What the denoiser is told, one row a picture.

    Attributes:
        hidden: text encoder states `[B, T, D]`.
        pooled: SDXL's pooled states `[B, P]`; None for SD 1 and 2.
        time_ids: SDXL's micro-conditioning `[B, 6]`; None for SD 1 and 2.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Context:
        return self._each(lambda x: x[rows])

    def expand(self, count: int) -> Context:
        """A single row, `count` times."""
        return self._each(lambda x: x.expand(count, *x.shape[1:]))

    def replaced(self, hidden: Tensor) -> Context:
        """The same with other states."""
        return replace(self, hidden=hidden)

    def kwargs(self) -> dict[str, Any]:
        """As the UNet wants to be called."""
        found: dict[str, Any] = {"encoder_hidden_states": self.hidden}
        if self.pooled is not None:
            found["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> Context:
        pooled, ids = self.pooled, self.time_ids
        return Context(
            change(self.hidden),
            None if pooled is None else change(pooled),
            None if ids is None else change(ids),
        )


def joined(*contexts: Context) -> Context:
    """Several contexts, one after the other."""

    def cat(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if there else None

    return Context(
        torch.cat([c.hidden for c in contexts]),
        cat([c.pooled for c in contexts]),
        cat([c.time_ids for c in contexts]),
    )


class Subject:
    """A text-to-image pipeline of diffusers, Stable Diffusion 1, 2 or XL.

    Args:
        pipeline: whatever has `encode_prompt`, `unet`, `vae` and `scheduler`. It is used, never
            changed.
        size: side of the pictures in pixels; 0 for what the UNet's configuration says.
        at_once: pictures in one pass; as many as there is memory for.

    Raises:
        ModelError: `model_prediction`: the model predicts neither epsilon nor v.
    """

    def __init__(self, pipeline: Any, size: int = 0, at_once: int = 32) -> None:
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        weight = next(self.unet.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.cell = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.size = size or int(self.unet.config["sample_size"]) * self.cell
        self.at_once = at_once
        schedule = self.scheduler("ddim")
        self.abar: Tensor = schedule.alphas_cumprod.to(self.device)
        self.prediction = str(schedule.config["prediction_type"])
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ModelError(
                "model_prediction",
                f"the model predicts {self.prediction!r}; only epsilon and v can be measured",
            )

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape of one latent, `(C, h, w)`."""
        side = self.size // self.cell
        return int(self.vae.config["latent_channels"]), side, side

    def scheduler(self, name: str) -> Any:
        """A fresh scheduler of diffusers, with the noise levels and timesteps of the pipeline's.

        Options of the pipeline's own solver (order, Karras sigmas, SDE) are left behind, so that
        a name means the same on every pipeline and no step draws noise that nobody seeded.

        Raises:
            ConfigError: `config_unknown` for a name that is not one of `SAMPLERS`.
        """
        import diffusers

        if name not in SAMPLERS:
            raise ConfigError(
                "config_unknown", f"Unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}."
            )
        own = self.pipeline.scheduler.config
        config = {key: own[key] for key in _NOISE_LEVELS if key in own}
        # latents are not confined to -1..1, but DDIM clips to it unless told
        return getattr(diffusers, SAMPLERS[name]).from_config({**config, "clip_sample": False})

    def encode(self, texts: Sequence[str], *, gradient: bool = False) -> Context:
        """Prompts as the pipeline encodes them; the empty one as its negative branch sees it.

        Args:
            texts: the prompts.
            gradient: keep the graph through the text encoder.
        """
        with torch.set_grad_enabled(gradient):
            found = self.pipeline.encode_prompt(
                list(texts),
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        if len(found) == 2:
            return Context(found[0])
        hidden, _, pooled, _ = found
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([not text for text in texts], device=hidden.device)
            hidden = hidden.masked_fill(empty[:, None, None], 0.0)
            pooled = pooled.masked_fill(empty[:, None], 0.0)
        side = self.size
        ids = torch.tensor([side, side, 0, 0, side, side], device=self.device, dtype=hidden.dtype)
        return Context(hidden, pooled, ids.expand(len(texts), -1))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Starting noise `[B, C, h, w]`, as the pipeline draws it from a CPU generator a seed."""
        drawn = [
            torch.randn(
                (1, *self.latent), generator=torch.Generator().manual_seed(s), dtype=self.dtype
            )
            for s in seeds
        ]
        return torch.cat(drawn).to(self.device)

    def predict(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The network's prediction, `[B, C, h, w]`, with gradient where something wants one."""
        return self.unet(z_t, t, return_dict=False, **context.kwargs())[0]

    def noised(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Latents at the noise level of timesteps `[B]`: z_t = a z + s eps."""
        a, s = self._levels(t)
        return a * z + s * eps

    def truth(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would predict there: eps, or v = a eps - s z."""
        if self.prediction == "epsilon":
            return eps
        a, s = self._levels(t)
        return a * eps - s * z

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[t][:, None, None, None].to(self.dtype)
        return abar.sqrt(), (1 - abar).sqrt()

    @torch.no_grad()
    def sample(
        self,
        context: Context,
        noise: Tensor,
        cfg: float,
        *,
        negative: str = "",
        sampler: str = "ddim",
        steps: int = _STEPS,
        start: Tensor | None = None,
        strength: float = 1.0,
        guide: SafeLatentGuide | None = None,
        on_batch: Callable[[int], object] = lambda n: None,
    ) -> Tensor:
        """Denoise; each picture depends on its own row of context and noise only.

        Args:
            context: what is asked for.
            noise: `[B, C, h, w]`, from `noise`.
            cfg: classifier-free guidance scale; 1 asks for the prompted prediction only.
            negative: prompt that guidance leads away from, of all pictures; "" for none.
            sampler: one of `SAMPLERS`.
            steps: of the whole way.
            start: clean latents to start from, for img2img (SDEdit); None for pure noise.
            strength: of img2img: the share of the way that is done again.
            guide: safe latent guidance, a third prediction at every step; needs cfg above 1.
            on_batch: told how many pictures were just finished.

        Returns:
            Clean latents `[B, C, h, w]`.
        """
        parts = []
        for at in range(0, len(noise), self.at_once):
            some = slice(at, at + self.at_once)
            z = None if start is None else start[some]
            parts.append(
                self._sample(
                    context[some], noise[some], cfg, negative, sampler, steps, z, strength, guide
                )
            )
            on_batch(len(parts[-1]))
        return torch.cat(parts)

    def _sample(
        self,
        context: Context,
        noise: Tensor,
        cfg: float,
        negative: str,
        sampler: str,
        steps: int,
        start: Tensor | None,
        strength: float,
        guide: SafeLatentGuide | None,
    ) -> Tensor:
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(steps, device=self.device)
        # as img2img pipelines count: the last `strength` of the steps
        first = 0 if start is None else steps - min(int(steps * strength), steps)
        times = scheduler.timesteps[first * scheduler.order :]
        if not len(times):
            return noise if start is None else start
        z = noise * scheduler.init_noise_sigma
        if start is not None:
            if hasattr(scheduler, "set_begin_index"):  # DDIM keeps no index
                scheduler.set_begin_index(first * scheduler.order)
            z = scheduler.add_noise(start, noise, times[:1])
        branches = [context]
        if cfg > 1:
            branches.insert(0, self.encode([negative]).expand(len(noise)))
        steering = None
        if guide is not None:
            if cfg <= 1:
                raise ConfigError("config_range", "safe latent guidance needs a scale above 1")
            branches.append(self.encode([guide.concept]).expand(len(noise)))
            steering = guide.begin(cfg, steps)
        told = joined(*branches)
        for i, t in enumerate(times):
            seen = scheduler.scale_model_input(torch.cat([z] * len(branches)), t)
            asked = self.predict(seen, t, told).chunk(len(branches))
            if steering is not None:
                predicted = steering(first + i, *asked)
            elif cfg > 1:
                predicted = asked[0] + cfg * (asked[1] - asked[0])
            else:
                predicted = asked[0]
            z = scheduler.step(predicted, t, z, return_dict=False)[0]
        return z

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents as pictures, uint8 RGB `[B, H, W, 3]`, on the CPU."""
        with self._vae() as vae:
            z = z.to(vae.dtype) / vae.config["scaling_factor"]
            parts = [vae.decode(part, return_dict=False)[0] for part in z.split(self.at_once)]
        shown = (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (shown * 255).round().byte().cpu()

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Pictures, uint8 RGB `[B, H, W, 3]`, as scaled latents (the posterior's mean)."""
        with self._vae() as vae:
            signal = images.to(self.device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
            parts = signal.split(self.at_once)
            z = torch.cat([vae.encode(part, return_dict=False)[0].mean for part in parts])
            return (z * vae.config["scaling_factor"]).to(self.dtype)

    @contextmanager
    def _vae(self) -> Iterator[Any]:
        """The VAE, for the time being in a precision that holds: SDXL's overflows in half."""
        widen = self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast")
        if widen:
            self.vae.to(torch.float32)
        try:
            yield self.vae
        finally:
            if widen:
                self.vae.to(torch.float16)
