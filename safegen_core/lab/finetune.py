# SPDX-License-Identifier: GPL-3.0-or-later
"""Fine-tunes of the miniature in other styles: what community checkpoints are to SD.

A patch that was trained on the base is tried on two of them, one near and one far: the farther a
model has gone, the less of the patch may be left. They are trained and shipped low-rank, as
ordinary LoRAs over every linear and convolutional layer of the denoiser (its self-attention
included), on the same world in another style.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import FileError
from . import model
from .dataset import draw_world, encode, to_images, to_signal
from .detectors import blur
from .prompts import training_caption
from .training import Progress, fit, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


_BATCH = 48
_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
)


@dataclass(frozen=True)
class Style:
    """How a picture is redrawn; signals are -1..1, shares 0..1.

    Attributes:
        soft: share of a 3x3 blur.
        faded: share of the colours that turns grey.
        tint: the colour (red, green, blue) everything is drawn towards.
        tinted: the share of that.
        grain: standard deviation of a soft noise.
    """

    soft: float
    faded: float
    tint: tuple[float, float, float]
    tinted: float
    grain: float

    def draw(self, images: Tensor, seed: int = 0) -> Tensor:
        """uint8 RGB [B, H, W, 3] in this style; `seed` is of the grain."""
        x = to_signal(images)
        x = x.lerp(blur(x), self.soft)
        x = x.lerp(x.mean(1, keepdim=True), self.faded)
        x = x.lerp(torch.tensor(self.tint).view(1, 3, 1, 1), self.tinted)
        if self.grain:
            noise = torch.randn(len(x), 1, *x.shape[2:], generator=_generator(seed))
            x = x + self.grain * 3 * blur(noise)  # the blur takes two thirds of it away
        return to_images(x)


@dataclass(frozen=True)
class FineTune:
    """One of the fine-tunes: a style, and how far the training goes for it.

    Attributes:
        name: of the file, without its suffix.
        style: of the pictures.
        rank: of the LoRA.
        lr: peak of the learning rate.
    """

    name: str
    style: Style
    rank: int
    lr: float

    @property
    def file(self) -> str:
        """Its file's name, beside the folder of the base."""
        return f"{self.name}.safetensors"


FINE_TUNES = {
    each.name: each
    for each in (
        # as if inked by night
        FineTune("fine-tune", Style(0.5, 0.0, (-0.8, -0.8, -0.3), 0.25, 0.0), rank=8, lr=2e-3),
        # washed-out sepia
        FineTune("fine-tune-far", Style(0.4, 0.7, (0.5, 0.2, -0.3), 0.35, 0.03), rank=16, lr=3e-3),
    )
}


def train_fine_tune(
    kind: FineTune,
    out: Path,
    base: Path = model.BASE,
    seed: int = 0,
    steps: int = 400,
    pictures: int = 3000,
    progress: Progress = silent,
) -> None:
    """Train a fine-tune and write it as a LoRA file that `load_lora_weights` reads.

    Args:
        kind: one of `FINE_TUNES`.
        out: the file to write.
        base: the miniature it starts from.
        seed: of pictures, captions, the LoRA's start and the training's draws.
        steps: of the training.
        pictures: it sees.
        progress: shows them.
    """
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    generator = _generator(seed)
    pipeline = model.load_pipeline(base)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    world = draw_world(pictures, seed + 2_000_003)
    latents = encode(pipeline.vae, kind.style.draw(world.images, seed), generator)
    latents = latents * pipeline.vae.config["scaling_factor"]
    rng = random.Random(f"{kind.name}/{seed}")
    tokens = model.tokenize(pipeline.tokenizer, [training_caption(s, rng) for s in world.scenes])
    with torch.no_grad():
        contexts = pipeline.text_encoder(tokens).last_hidden_state
        empty = pipeline.text_encoder(model.tokenize(pipeline.tokenizer, [""])).last_hidden_state[0]

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=kind.rank, lora_alpha=kind.rank, target_modules=list(_LAYERS)))

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (_BATCH,), generator=generator)
        z, context = latents[chosen], contexts[chosen]
        context[torch.rand(_BATCH, generator=generator) < 0.1] = empty
        noise = torch.randn(z.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (_BATCH,), generator=generator)
        return (unet(scheduler.add_noise(z, noise, t), t, context).sample - noise).pow(2).mean()

    trained = [p for p in unet.parameters() if p.requires_grad]
    fit(trained, loss, steps, kind.lr, kind.name, progress)
    # peft's own key names: diffusers' older ones mix with them, and its loader then drops some
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(
        out.parent,
        unet_lora_layers={k: v.half().contiguous() for k, v in layers.items()},
        weight_name=out.name,
    )


def load_fine_tuned(
    name_or_path: str | Path = "fine-tune", base: Path = model.BASE
) -> StableDiffusionPipeline:
    """The miniature with a fine-tune merged in, as a downloaded checkpoint would be.

    Args:
        name_or_path: one of `FINE_TUNES`, which lie beside the base's folder, or a LoRA file.
        base: the miniature's folder.

    Raises:
        FileError: `file_missing` when there is no such file.
    """
    known = FINE_TUNES.get(str(name_or_path))
    file = base.parent / known.file if known else Path(name_or_path)
    if not file.is_file():
        raise FileError(
            "file_missing",
            f"There is no fine-tune {file}; give a LoRA file or one of {', '.join(FINE_TUNES)}.",
        )
    pipeline = model.load_pipeline(base)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline


def weight_change(changed: nn.Module, original: nn.Module) -> float:
    """How far a network's weights went: the norm of the difference over the norm before."""
    pairs = zip(changed.parameters(), original.parameters(), strict=True)
    with torch.no_grad():
        sums = [torch.stack([a - b, b]).double().pow(2).flatten(1).sum(1) for a, b in pairs]
    moved, before = torch.stack(sums).sum(0).sqrt().tolist()
    return round(moved / before, 4)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
