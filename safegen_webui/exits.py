# SPDX-License-Identifier: GPL-3.0-or-later
"""Every door by which a picture leaves the host, and the check in it.

| door | where it is checked |
|---|---|
| a batch, before face restoration and other extensions work on it | hook `batch` |
| a finished picture, before it is saved and put into a grid | hook `finished` |
| what a request returns, to the page and to the API; mask pictures | `sweep`, by `requests` |
| what a script makes of the pictures of many requests | `sweep`, by `requests` |
| every file: pictures, grids, masks, `-before-...`; *Save* in the page | `save_image` |
| files that others write or exchange on the way; previews of models | `save_image_with_geninfo` |
| grids, of parts that were checked one by one | `image_grid` |
| the first pass of hires fix, before minutes go into the second | `sample_hr_pass` |
| Extras, page and API | `run_postprocessing` |
| pictures in answers of the API, the progress among them | `encode_pil_to_base64` |
| pictures that Gradio serves to the page | `pil_to_temp_file`, `save_pil_to_cache` |
| live previews | `previews` |

Nearly every picture meets several doors. It is looked at in the first; in the others it is known by
its content (`checking`), which costs a digest.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safegen_core.errors import coded
from safegen_core.guard.verdict import said

from . import checking, jobs, previews
from .wraps import Wrap

_WITHHELD = "_safegen_withheld"  # on the host's `p`: verdict and picture, by place in the batch

_log = logging.getLogger(__name__)


def batch(p: Any, pp: Any) -> None:
    """Judge a batch in one go, and take out what is withheld, before others work on it.

    A picture that is only censored goes on as it is: face restoration and ADetailer would paint
    over a mosaic, and what comes out of them is another picture, which `finished` judges anew.

    Args:
        p: the host's processing object.
        pp: its `PostprocessBatchListArgs`; `images` are tensors `[3, H, W]` in 0..1.
    """
    setattr(p, _WITHHELD, {})
    if not _is_checked():
        return
    pictures = [_pillow(image) for image in pp.images]
    verdicts = checking.withheld(pictures)
    for place, verdict in enumerate(verdicts):
        if verdict is not None:
            getattr(p, _WITHHELD)[place] = verdict, pictures[place]
            sign = checking.sign_for(pictures[place], verdict)
            pp.images[place] = _tensor(sign).to(pp.images[place])


def finished(p: Any, pp: Any) -> None:
    """Judge a picture after everything else was done to it, before it is saved.

    Args:
        p: the host's processing object.
        pp: its `PostprocessImageArgs`.
    """
    from . import last_batch

    made = pp.image
    taken_out = getattr(p, _WITHHELD, {}).get(getattr(p, "batch_index", None))
    if taken_out is not None:  # what was pasted round the sign goes, too
        verdict, made = taken_out
        pp.image = checking.sign_for(pp.image, verdict)
    pp.image = checking.gate(pp.image)
    last_batch.keep(made)


def sweep(processed: Any) -> Any:
    """Check all that a request is about to return.

    Args:
        processed: the host's `Processed`, or None, which some scripts return.
    """
    for name in ("images", "extra_images"):
        pictures = getattr(processed, name, None)
        if pictures:
            setattr(processed, name, checking.gate_all(list(pictures)))
    return processed


def _save(original: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
    shown = checking.gate(image)
    done = original(shown, *args, **kwargs)
    if shown is not image:  # the page serves this file for the picture that the caller holds
        image.already_saved_as = getattr(shown, "already_saved_as", None)
    return done


def _write(original: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
    return original(checking.gate(image, record=False), *args, **kwargs)


def _grid(original: Any, imgs: Any, *args: Any, **kwargs: Any) -> Any:
    is_preview = previews.drawing()
    if is_preview and previews.mode() != previews.JUDGED:
        return original(imgs, *args, **kwargs)  # hidden as a whole, or not shown
    # Small in a grid, much would be overlooked.
    grid = original(checking.gate_all(list(imgs), record=not is_preview), *args, **kwargs)
    checking.let_through(grid)
    return grid


def _second_pass(
    original: Any, p: Any, samples: Any, decoded_samples: Any, *args: Any, **kwargs: Any
) -> Any:
    job = jobs.current()
    first = _first_pass(p, samples, decoded_samples) if _is_checked() else None
    if job is None or not first:
        return original(p, samples, decoded_samples, *args, **kwargs)
    if not all(checking.withheld([_pillow((one + 1) / 2) for one in first])):
        return original(p, samples, decoded_samples, *args, **kwargs)
    job.note("Hires fix was not carried out: its first pass was withheld.")
    from modules.processing import DecodedSamples

    return DecodedSamples(first)


def _first_pass(p: Any, samples: Any, decoded: Any) -> list[Tensor]:
    """Pictures `[3, H, W]` in -1..1; none if they cannot be looked at now: the doors will."""
    from modules import processing, shared

    if shared.state.interrupted:
        return []
    if decoded is None:
        try:
            decoded = processing.decode_latent_batch(
                p.sd_model, samples, target_device=torch.device("cpu"), check_for_nans=True
            )
        except Exception as error:
            _log.info("the first pass could not be looked at: %s", said(error))
            return []
    return [one.float().cpu() for one in decoded]


def _extras(original: Any, *args: Any, **kwargs: Any) -> Any:
    from . import settings

    with coded(), jobs.begun(settings.standing()) as job:
        checking.ready(job.protection)
        outputs, *told = original(*args, **kwargs)
        return (checking.gate_all(outputs), *told)


def _encode(original: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
    # not recorded: finished pictures were, and the progress's are previews
    return original(checking.gate(image, record=False), *args, **kwargs)


def _served(original: Any, component: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
    return original(component, checking.gate(image, record=False), *args, **kwargs)


def _is_checked() -> bool:
    job = jobs.current()
    return job is not None and bool(job.protection.images)


def _pillow(image: Tensor) -> Image.Image:
    """`[3, H, W]` in 0..1 as the host converts it, or the digest would be another."""
    pixels = 255.0 * np.moveaxis(image.clamp(0, 1).float().cpu().numpy(), 0, 2)
    return Image.fromarray(pixels.astype(np.uint8))


def _tensor(picture: Image.Image) -> Tensor:
    """The reverse: the host cuts off what is behind the point."""
    pixels = torch.from_numpy(np.array(picture)).movedim(2, 0).float()
    return ((pixels + 0.5) / 255).clamp(0, 1)


WRAPS = (
    Wrap("modules.images:save_image", _save, "every file would show what was withheld"),
    Wrap(
        "modules.images:save_image_with_geninfo",
        _write,
        "files that other extensions write or exchange on the way would not be checked",
    ),
    Wrap(
        "modules.ui_extra_networks:save_image_with_geninfo",
        _write,
        "previews of models, which all users see, would not be checked",
        optional=True,
    ),
    Wrap("modules.images:image_grid", _grid, "small in a grid, much would be overlooked"),
    Wrap(
        "modules.processing:StableDiffusionProcessingTxt2Img.sample_hr_pass",
        _second_pass,
        "minutes would go into the second pass of a picture that is withheld",
        optional=True,
    ),
    Wrap(
        "modules.postprocessing:run_postprocessing",
        _extras,
        "Extras, in the page and the API, run no hook of a generation",
    ),
    Wrap(
        "gradio.components:IOComponent.pil_to_temp_file",
        _served,
        "the page of a host with Gradio 3 would show pictures of other extensions unchecked",
        optional=True,
    ),
    Wrap(
        "gradio.processing_utils:save_pil_to_cache",
        _encode,
        "the page of a host with Gradio 4 would show pictures of other extensions unchecked",
        optional=True,
    ),
    *previews.WRAPS,
)
"""In place from the start."""

APP_WRAPS = (
    Wrap(
        "modules.api.api:encode_pil_to_base64",
        _encode,
        "answers of the API, the progress among them, would not be checked once more",
    ),
)
"""To be put in place when the host's app has started: importing its API earlier would freeze the
list of options before other extensions have added theirs."""
