# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the miniature from nothing: autoencoder, judges, denoiser and text encoder, fine-tunes.

One command (`safegen lab train-base`), one seed. Each stage seeds itself and leaves its result in
the output folder, so an interrupted run goes on with the first stage that is missing and ends with
the same weights.

A further miniature, to see whether a result holds for more than one model, keeps the shipped
autoencoder and judges: denoiser, text encoder, tokenizer, captions, pictures and fine-tunes are
new, what measures them is the same instrument. What ships in `lab/weights` was trained with its own
autoencoder (`--autoencoder own`).
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import DataError
from . import model
from .dataset import World, censor, draw_world, encode, psnr, reconstruct, to_signal
from .detectors import (
    DETECTORS,
    load_detectors,
    measure_detector,
    save_detector,
    train_detector,
)
from .finetune import FINE_TUNES, FineTune, load_fine_tuned, train_fine_tune, weight_change
from .prompts import training_caption
from .training import Progress, fit, silent

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline


@dataclass(frozen=True)
class Recipe:
    """Sizes of the training, in pictures and steps; the defaults made the shipped miniature."""

    pictures: int = 12_000
    captions_each: int = 4
    vae_steps: int = 2400
    vae_batch: int = 16
    vae_lr: float = 3e-3
    detector_steps: int = 600
    detector_batch: int = 96
    denoiser_steps: int = 3400
    denoiser_batch: int = 64
    denoiser_lr: float = 1.5e-3
    empty_caption: float = 0.1  # share of captions replaced by "", for classifier-free guidance
    ema: float = 0.998
    fine_tune_steps: int = 400
    fine_tune_far_steps: int = 500
    fine_tune_pictures: int = 3000


def train_base(
    out: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
    own_autoencoder: bool = False,
) -> dict:
    """Train a miniature; write `base/`, the detectors, the fine-tunes and `record.json`.

    Args:
        out: a folder, made if missing. Stages whose results it already holds are not run again.
        seed: of everything. At equal thread count the result is the same, bit for bit.
        recipe: sizes; the default is the shipped one.
        progress: shows the steps of each stage.
        own_autoencoder: train autoencoder and judges, too. By default the shipped ones are taken
            over, so that several miniatures are measured with one instrument (and an hour of CPU is
            saved); they are still measured, on pictures of this seed.

    Returns:
        The record: seed, recipe, and what each stage cost (seconds) and measured.

    Raises:
        DataError: `data_other_run` when `out` holds the stages of another seed, recipe or
            autoencoder.
    """
    recipe = recipe or Recipe()
    identity = {"seed": seed, "recipe": asdict(recipe), "own_autoencoder": own_autoencoder}
    record = _open_record(out, identity)
    world = draw_world(recipe.pictures, seed)
    test = draw_world(min(1000, recipe.pictures), seed + 1_000_003)

    def stage(name: str, result: Path, work: Callable[[torch.Generator], dict]) -> None:
        if result.exists():
            return
        # a string seeds the same on every platform; each stage stands alone
        number = random.Random(f"{seed}/{name}").getrandbits(63)
        torch.manual_seed(number)
        wall, cpu = time.perf_counter(), time.process_time()
        measured = work(torch.Generator().manual_seed(number))
        record["stages"][name] = measured | {
            "seconds": round(time.perf_counter() - wall),
            "cpu_seconds": round(time.process_time() - cpu),
            "threads": torch.get_num_threads(),
        }
        (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def autoencoder(generator: torch.Generator) -> dict:
        if own_autoencoder:
            vae = train_vae(world, recipe, generator, progress)
        else:
            vae = model.load_vae(model.BASE / "vae")
        _save_whole(vae.save_pretrained, out / "autoencoder")
        return {"psnr_db": psnr(reconstruct(vae, test.images), test.images)}

    stage("autoencoder", out / "autoencoder", autoencoder)
    vae = model.load_vae(out / "autoencoder")

    for name, shipped in DETECTORS.items():

        def judge(generator: torch.Generator, name: str = name, file: str = shipped.name) -> dict:
            if own_autoencoder:
                sizes = recipe.detector_steps, recipe.detector_batch
                detector = train_detector(name, world, vae, *sizes, generator, progress)
            else:
                (detector,) = load_detectors({name: DETECTORS[name]})
            save_detector(detector, out / file)
            return measure_detector(detector, test, vae)

        stage(f"detector {name}", out / shipped.name, judge)

    def denoiser(generator: torch.Generator) -> dict:
        pipeline = train_denoiser(world, vae, recipe, generator, progress)
        _save_whole(lambda folder: model.save_pipeline(pipeline, folder), out / "base")
        return {}

    stage("denoiser", out / "base", denoiser)

    judges = load_detectors({k: out / path.name for k, path in DETECTORS.items()})
    steps = {"fine-tune": recipe.fine_tune_steps, "fine-tune-far": recipe.fine_tune_far_steps}
    for name, kind in FINE_TUNES.items():

        def fine_tune(generator: torch.Generator, kind: FineTune = kind) -> dict:
            sizes = steps[kind.name], recipe.fine_tune_pictures
            train_fine_tune(kind, out / kind.file, out / "base", seed, *sizes, progress)
            shown = reconstruct(vae, kind.style.draw(test.images))
            right = [(j.classify(shown) == test.labels).float().mean().item() for j in judges]
            found = {f"accuracy_of_{k}": round(r, 4) for k, r in zip(DETECTORS, right, strict=True)}
            tuned = load_fine_tuned(kind.name, out / "base")
            base = model.load_pipeline(out / "base")
            return found | {"weight_change": weight_change(tuned.unet, base.unet)}

        stage(name, out / kind.file, fine_tune)
    return record


def train_vae(
    world: World, recipe: Recipe, generator: torch.Generator, progress: Progress
) -> AutoencoderKL:
    """Train the autoencoder on the drawn pictures, an eighth of them mosaicked."""
    vae = model.build_vae()
    mosaicked = max(1, recipe.vae_batch // 8)

    def loss() -> Tensor:
        chosen = torch.randint(len(world.scenes), (recipe.vae_batch,), generator=generator)
        images = world.images[chosen]
        # a patch steers to mosaics, so the decoder has to know them
        scenes = [world.scenes[int(k)] for k in chosen[:mosaicked]]
        images[:mosaicked] = censor(images[:mosaicked], scenes)
        x = to_signal(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (posterior,) = vae.encode(x, return_dict=False)
            (y,) = vae.decode(posterior.sample(generator), return_dict=False)  # pyright: ignore[reportArgumentType]
        error = y.float() - x
        return error.abs().mean() + error.pow(2).mean() + 1e-6 * posterior.kl().mean()

    fit(vae.parameters(), loss, recipe.vae_steps, recipe.vae_lr, "autoencoder", progress)
    latents = encode(vae, world.images[:2000], generator)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae.eval()


def train_denoiser(
    world: World,
    vae: AutoencoderKL,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Progress,
) -> StableDiffusionPipeline:
    """Train the denoiser and the text encoder together on latents, captions and noise."""
    from diffusers.training_utils import compute_snr

    rng = random.Random(f"captions/{generator.initial_seed()}")
    captions = [
        training_caption(scene, rng) for scene in world.scenes for _ in range(recipe.captions_each)
    ]
    tokenizer = model.build_tokenizer(captions)
    tokens = model.tokenize(tokenizer, captions).view(len(world.scenes), recipe.captions_each, -1)
    empty = model.tokenize(tokenizer, [""])[0]
    latents = encode(vae, world.images, generator) * vae.config["scaling_factor"]

    pipeline = model.build_pipeline(
        vae, model.build_unet(), model.build_text_encoder(tokenizer), tokenizer
    )
    scheduler = pipeline.scheduler
    both = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    batch = recipe.denoiser_batch

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        which = torch.randint(recipe.captions_each, (batch,), generator=generator)
        ids = tokens[chosen, which]
        ids[torch.rand(batch, generator=generator) < recipe.empty_caption] = empty
        z = latents[chosen]
        noise = torch.randn(z.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator)
        context = pipeline.text_encoder(ids).last_hidden_state
        predicted = pipeline.unet(scheduler.add_noise(z, noise, t), t, context).sample
        snr = compute_snr(scheduler, t)
        weight = snr.clamp(max=5.0) / snr  # min-SNR-5, Hang et al. (2023), equation 6
        return (weight * (predicted - noise).pow(2).mean((1, 2, 3))).mean()

    fit(
        both.parameters(),
        loss,
        recipe.denoiser_steps,
        recipe.denoiser_lr,
        "denoiser",
        progress,
        after_step=lambda: average.update_parameters(both),
    )
    both.load_state_dict(average.module.state_dict())
    both.eval()
    return pipeline


def _open_record(out: Path, identity: dict) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "record.json"
    fresh = {
        **identity,
        "made": date.today().isoformat(),
        "torch": torch.__version__,
        "stages": {},
    }
    if not path.exists():
        return fresh
    record = json.loads(path.read_text(encoding="utf-8"))
    if any(record.get(key) != value for key, value in identity.items()):
        raise DataError(
            "data_other_run",
            f"{out} holds a run with another seed, recipe or autoencoder; choose an empty folder "
            "with --out.",
        )
    return record


def _save_whole(save: Callable[[Path], object], folder: Path) -> None:
    """Write a folder under another name first: an interrupted stage leaves no half of one."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save(part)
    part.rename(folder)
