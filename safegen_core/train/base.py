# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the base model: a diffusers folder, or a single .safetensors file and a folder of configs.

Only local files, never a pickle. Parts come one at a time, so that the text encoder and the VAE are
in memory only while they work. SD 1 and SD 2 (eps and v) now; SDXL needs its second text encoder
and time ids, which belong into `Prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import recognise
from ..errors import FileError, ModelError, SafeGenError
from ..storage import Weights
from . import config
from .noise import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts; row 0 is the empty prompt.

    Attributes:
        rows: prompt -> row.
        hidden: text encoder states `[N, T, D]`, float32.
    """

    rows: dict[str, int]
    hidden: torch.Tensor

    def kwargs(self, c: torch.Tensor) -> dict[str, Any]:
        """What the UNet wants to be called with for the prompt rows `c`, int64 `[B]`."""
        return {"encoder_hidden_states": self.hidden[c]}


class BaseModel:
    """The parts of a base model, each loaded when asked for.

    Raises:
        FileError: missing, pickled or unreadable files.
        ModelError: a family that cannot be trained, or an inpainting or otherwise extended UNet.
    """

    def __init__(self, settings: config.Base) -> None:
        self.path = Path(settings.path)
        if not self.path.exists():
            raise FileError("file_missing", f"base.path {self.path} does not exist")
        self.is_folder = self.path.is_dir()
        self.configs = self.path if self.is_folder else Path(settings.config)
        if not self.is_folder and not (settings.config and self.configs.is_dir()):
            raise FileError(
                "file_missing",
                f"{self.path} is a single file; set base.config to a diffusers folder "
                "of the same model family (its JSON and tokenizer files are enough)",
            )
        weights = Weights(self.path)  # checks the header and refuses pickles
        self.family = recognise.detect(weights.shapes, weights.metadata).family
        self.schedule = self._schedule()
        self._refuse_untrainable()

    @property
    def cell(self) -> int:
        """Pixels a latent cell is wide."""
        return 2 ** (len(self._config("vae")["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures this base was made for."""
        return int(self._config("unet")["sample_size"]) * self.cell

    @property
    def grain(self) -> int:
        """Sides of pictures must be multiples of this many pixels."""
        return self.cell * 2 ** (len(self._config("unet")["block_out_channels"]) - 1)

    def unet(self, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The denoiser, frozen, in evaluation mode."""
        from diffusers import UNet2DConditionModel

        unet: Any = self._load(UNet2DConditionModel, "unet")
        return unet.requires_grad_(False).eval().to(device, dtype)

    def vae(self, device: torch.device) -> AutoencoderKL:
        """The autoencoder, in float32: some VAEs overflow in 16 bits."""
        from diffusers import AutoencoderKL

        vae: Any = self._load(AutoencoderKL, "vae")
        return vae.requires_grad_(False).eval().to(device, torch.float32)

    def encode(self, prompts: Sequence[str], device: torch.device) -> Prompts:
        """Encode every distinct prompt once, as StableDiffusionPipeline does."""
        distinct = list(dict.fromkeys(["", *prompts]))
        tokenizer, encoder = self._text()
        encoder = encoder.eval().to(device, torch.float32)
        hidden = []
        with torch.no_grad():
            for start in range(0, len(distinct), 64):
                tokens = tokenizer(
                    distinct[start : start + 64],
                    padding="max_length",
                    max_length=tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).to(device)
                masked = getattr(encoder.config, "use_attention_mask", False)
                attention = tokens.attention_mask if masked else None
                hidden.append(encoder(tokens.input_ids, attention_mask=attention)[0])
        return Prompts({text: row for row, text in enumerate(distinct)}, torch.cat(hidden))

    def _text(self) -> tuple[Any, Any]:
        from transformers import CLIPTextModel, CLIPTokenizer

        if self.is_folder:
            tokenizer = _local(
                CLIPTokenizer.from_pretrained,
                self.path,
                subfolder="tokenizer",
                local_files_only=True,
            )
            return tokenizer, self._load(CLIPTextModel, "text_encoder")
        from diffusers import StableDiffusionPipeline

        absent: dict[str, Any] = dict.fromkeys(("unet", "vae", "safety_checker", "scheduler"))
        pipeline = _local(
            StableDiffusionPipeline.from_single_file,
            str(self.path),
            config=str(self.configs),
            local_files_only=True,
            **absent,
        )
        return pipeline.tokenizer, pipeline.text_encoder

    def _load(self, kind: Any, part: str) -> Any:
        # The caller sets the dtype: the loaders' keyword for it changed its name.
        if not self.is_folder:
            return _local(
                kind.from_single_file,
                str(self.path),
                config=str(self.configs),
                subfolder=part,
                local_files_only=True,
            )
        files = [file.name for file in (self.path / part).glob("*.safetensors")]
        half = files and all(".fp16." in name for name in files)
        return _local(
            kind.from_pretrained,
            self.path,
            subfolder=part,
            local_files_only=True,
            use_safetensors=True,
            variant="fp16" if half else None,
        )

    def _schedule(self) -> NoiseSchedule:
        from diffusers import DDPMScheduler

        # Any scheduler's file will do: only the training noise levels are taken from it.
        settings = self._config("scheduler")
        known = {
            key: settings[key]
            for key in (
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "trained_betas",
                "rescale_betas_zero_snr",
                "prediction_type",
            )
            if key in settings
        }
        scheduler: Any = DDPMScheduler(**known)
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ModelError("model_refused", f"{self.path} predicts {prediction!r}; need eps or v")
        return NoiseSchedule(scheduler.alphas_cumprod.float(), prediction)

    def _config(self, part: str) -> dict[str, Any]:
        file = (
            self.configs
            / part
            / ("scheduler_config.json" if part == "scheduler" else "config.json")
        )
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError("file_config", f"cannot read {file}: {error}") from error

    def _refuse_untrainable(self) -> None:
        unet = self._config("unet")
        if unet.get("addition_embed_type"):
            raise ModelError(
                "model_refused",
                f"{self.path} is {self.family.title}: the trainer knows SD 1 and SD 2 so far",
            )
        if unet["in_channels"] != unet["out_channels"]:
            raise ModelError(
                "model_refused",
                f"{self.path} takes {unet['in_channels']} input channels (inpainting or an edit "
                "model); train on its plain sibling, the patch fits both",
            )


def _local(load: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a loader of diffusers or transformers and speak of its failure in our words."""
    try:
        with _without_bars():
            return load(*args, **kwargs)
    except SafeGenError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        part = kwargs.get("subfolder", "text encoder")
        raise FileError(
            "file_base", f"cannot load {part} from {args[0]}: {str(error).strip()[:300]}"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the loaders' own progress bars, and leave the caller's choice as it was."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [lib for lib in (of_diffusers, of_transformers) if lib.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
