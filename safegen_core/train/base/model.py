# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the base model: a diffusers folder, or a single .safetensors checkpoint.

Only local files, never a pickle, never the hub. Parts come one at a time, so that text encoders and
the VAE are in memory only while they work.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import recognise
from ...errors import FileError, ModelError
from ...storage import Weights
from .. import config
from ..noise import NoiseSchedule
from . import prediction, vocabulary
from .config_folder import SHIPPED, Configs
from .folder import Folder
from .prompts import Prompts, last_layer, penultimate_layer
from .single_file import SingleFile

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

logger = logging.getLogger(__name__)

_REFUSED = {
    "edit": "an edit model; train on its plain sibling, the patch fits both",
    "depth": "a depth-to-image model; train on its plain sibling, the patch fits both",
    "unclip": "an unCLIP model, which is prompted with pictures; train on its plain sibling",
    "animatediff": "an AnimateDiff model; train on the picture model it was made from",
    "scaled-fp8": "stored in scaled 8-bit numbers; train on its 16-bit release, which it fits too",
}


class BaseModel:
    """The parts of a base model, each loaded when asked for.

    Attributes:
        path: folder or file.
        family: its family.

    Args:
        settings: where it lies, and what is known about it.

    Raises:
        FileError: missing, pickled or unreadable files; `file_tokenizer` when the tokenizer is
            neither there nor installed.
        ModelError: a base that cannot be trained on.
    """

    def __init__(self, settings: config.Base) -> None:
        self.path = Path(settings.path)
        if not self.path.exists():
            raise FileError("file_missing", f"base.path {self.path} does not exist")
        self._settings = settings
        self._weights = Weights(self.path)  # checks the header and refuses pickles
        detected = recognise.detect(self._weights.shapes, self._weights.metadata)
        self.family = detected.family
        self._refuse_variants(detected)
        self._source: Folder | SingleFile
        if self.path.is_dir():
            self._source = Folder(self.path)
        else:
            self._source = SingleFile(self._weights, detected, self._configs())
        self._refuse_channels()
        configs = self._source.configs
        if not all(configs.has_words(encoder) for encoder in configs.text_encoders):
            vocabulary.table()  # better missed now than after an hour of encoding pictures
        self._said = prediction.said(
            self._weights.shapes, self._weights.metadata, configs.of("scheduler")
        )

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise levels the base was trained on, and what it predicts.

        Where nothing says what it predicts (Stable Diffusion 2 in a single file), the network is
        loaded once and looked at, on the CPU.
        """
        scheduler = self._source.configs.of("scheduler")
        if self._settings.prediction != "auto":
            found = self._settings.prediction
        elif self._said is not None:
            found = self._said
        elif self.family.default_prediction != "unknown":
            found = self.family.default_prediction
        else:
            found = self._look(scheduler.get("num_train_timesteps", 1000))
        zero_terminal = prediction.ends_in_noise(self._weights.shapes, self._weights.metadata)
        return prediction.noise_schedule(scheduler, found, zero_terminal)

    @property
    def cell(self) -> int:
        """Pixels a latent cell is wide."""
        return 2 ** (len(self._source.configs.of("vae")["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures this base was made for."""
        # Stable Diffusion 2 came as epsilon at 512 and v at 768; a single file says neither.
        alone = self._source.configs.folder.parent == SHIPPED
        if alone and self.family.name == "sd2" and self.schedule.prediction == "v_prediction":
            return 768
        return int(self._source.configs.of("unet")["sample_size"]) * self.cell

    @property
    def grain(self) -> int:
        """Sides of pictures must be multiples of this many pixels."""
        blocks = self._source.configs.of("unet")["block_out_channels"]
        return self.cell * 2 ** (len(blocks) - 1)

    @property
    def is_xl(self) -> bool:
        """Whether the UNet is also told the pooled prompt and the size, as SDXL's."""
        return self._source.configs.of("unet").get("addition_embed_type") == "text_time"

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet is also given a mask and a masked picture."""
        unet = self._source.unet_config()
        return unet["in_channels"] != unet["out_channels"]

    def unet(self, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The denoiser, frozen, in evaluation mode."""
        from diffusers import UNet2DConditionModel

        unet = self._source.network(UNet2DConditionModel, "unet", dtype)
        return unet.requires_grad_(False).eval().to(device)

    def vae(self, device: torch.device) -> AutoencoderKL:
        """The autoencoder, in float32: some VAEs overflow in 16 bits."""
        from diffusers import AutoencoderKL

        vae = self._source.network(AutoencoderKL, "vae", torch.float32)
        return vae.requires_grad_(False).eval().to(device)

    def encode(self, prompts: Sequence[str], device: torch.device, resolution: int = 0) -> Prompts:
        """Encode every distinct prompt once, in float32, as diffusers' pipelines do.

        SDXL's row 0, the empty prompt, is what sampling uses where no negative prompt is given:
        for a folder zeros, unless its `model_index.json` says `force_zeros_for_empty_prompt` is
        false (diffusers); for a single file the encoded "" (ComfyUI, and what the descendants of
        SDXL are fine-tuned with).

        Args:
            prompts: any number, in any order.
            device: where to encode and leave the result.
            resolution: side in pixels of the pictures that SDXL is told; 0 = the base's own.
        """
        distinct = list(dict.fromkeys(["", *prompts]))
        hidden, pooled = [], None
        for part in self._source.configs.text_encoders:
            states, projected = self._encode(part, distinct, device)
            hidden.append(states)
            pooled = projected if projected is not None else pooled
        rows = {text: row for row, text in enumerate(distinct)}
        states = torch.cat(hidden, dim=-1)
        if not self.is_xl:
            return Prompts(rows, states)
        if pooled is None:
            raise FileError("file_config", f"{self.path} is an SDXL without a second text encoder")
        if self._source.empty_is_zeros:
            states[0], pooled[0] = 0, 0
        side = float(resolution or self.resolution)
        time_ids = torch.tensor([side, side, 0.0, 0.0, side, side], device=device)
        return Prompts(rows, states, pooled, time_ids)

    def inpaint_channels(self, vae: AutoencoderKL, side: int) -> torch.Tensor | None:
        """What an inpainting UNet is given beside `z_t`, None for a plain one.

        A mask of 1 (paint everything) and the latents of the picture with all of that masked, which
        is grey: so an inpainting UNet draws a picture from words as its plain sibling does.

        Args:
            vae: the base's.
            side: of the pictures, in pixels.

        Returns:
            `[1 + C, h, w]` float32 on the VAE's device.
        """
        if not self.is_inpainting:
            return None
        grey = torch.zeros((1, 3, side, side), device=vae.device, dtype=vae.dtype)
        with torch.no_grad():
            encoded: Any = vae.encode(grey)
        latents = (encoded.latent_dist.mode() * vae.config["scaling_factor"])[0].float()
        return torch.cat([torch.ones_like(latents[:1]), latents])

    def _configs(self) -> Configs:
        given = self._settings.config
        if given and not Path(given).is_dir():
            raise FileError("file_missing", f"base.config {given} is no folder")
        folder = Path(given) if given else SHIPPED / self.family.name
        if not folder.is_dir():
            raise FileError(
                "file_missing",
                f"{self.path} is {self.family.title}, of which SafeGen has no configs; set "
                "base.config to a diffusers folder of the same model (its JSON files are enough)",
            )
        return Configs(folder)

    def _encode(
        self, part: str, texts: Sequence[str], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One text encoder's states; it is gone from memory when this returns."""
        tokenizer = self._source.configs.tokenizer(part)
        encoder = self._source.text_encoder(part).requires_grad_(False).eval().to(device)
        if self.is_xl:
            return penultimate_layer(tokenizer, encoder, texts, device)
        return last_layer(tokenizer, encoder, texts, device), None

    def _look(self, steps: int) -> str:
        logger.info("%s does not say what it predicts: looking at the network", self.path)
        cpu = torch.device("cpu")
        prompts = self.encode([], cpu)
        found = prediction.seen(self.unet(cpu, torch.float32), prompts, steps)
        if found is None:
            raise ModelError(
                "model_prediction",
                f"cannot tell whether {self.path} predicts epsilon or v; set base.prediction "
                "(v_prediction if it was made at 768 pixels, else epsilon)",
            )
        logger.info("it predicts %s", found)
        return found

    def _refuse_variants(self, detected: recognise.Detected) -> None:
        for variant in sorted(detected.variants & _REFUSED.keys()):
            raise ModelError("model_refused", f"{self.path} is {_REFUSED[variant]}")
        if self.family.name == "sdxl-refiner":
            raise ModelError(
                "model_refused",
                f"{self.path} is the SDXL refiner, which only finishes pictures of the base; train "
                "on the base",
            )

    def _refuse_channels(self) -> None:
        unet = self._source.unet_config()
        extra = unet["in_channels"] - unet["out_channels"]
        if extra not in (0, unet["out_channels"] + 1):
            raise ModelError(
                "model_refused",
                f"{self.path} takes {unet['in_channels']} input channels (an edit or depth model); "
                "train on its plain sibling, the patch fits both",
            )
