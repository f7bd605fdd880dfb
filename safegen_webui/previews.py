# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures that the host shows while it works: judged like any other before anybody sees them.

Every preview goes through `State.assign_current_image`: those that the browser and the API ask for
from threads of their own, those of Extras and of training. Forge Neo's video frames go there too.
The options `live_previews_enable` and its like are no control: a request can override them.

At most one preview is decoded and judged at a time; those that come meanwhile are dropped, and the
last one stays on show. So is one that cannot be judged: nothing is shown instead.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import torch
from PIL import Image

from safegen_core.detect import censor
from safegen_core.guard.verdict import said

from . import checking, jobs
from .wraps import Wrap

JUDGED, MOSAIC, OFF = "judged", "mosaic", "off"
MODES = (JUDGED, MOSAIC, OFF)
"""What may be chosen for previews: checked like finished pictures, hidden as a whole, or none."""

_one_at_a_time = threading.RLock()
_drawing = threading.local()
_log = logging.getLogger(__name__)


def drawing() -> bool:
    """Whether this thread is making a preview, and not a finished picture."""
    return getattr(_drawing, "now", False)


def mode() -> str:
    """How previews are shown."""
    from . import settings

    return settings.previews()


def _make(original: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    if not _one_at_a_time.acquire(blocking=False):
        return None
    _drawing.now = True
    try:
        # Decoding costs more than the rest; what nobody may see need not be decoded.
        return None if _is_checked() and mode() == OFF else original(state, *args, **kwargs)
    except Exception as error:  # the host would show nothing either
        _log.warning("no preview: %s", said(error))
        return None
    finally:
        _drawing.now = False
        _one_at_a_time.release()


def _assign(original: Any, state: Any, image: Any) -> Any:
    if not _one_at_a_time.acquire(blocking=False):
        return None
    try:
        shown = _shown(image)
    except Exception as error:  # fail closed, and never end a request for the sake of a preview
        _log.warning("a preview is not shown: %s", said(error))
        return None
    finally:
        _one_at_a_time.release()
    return None if shown is None else original(state, shown)


def _shown(image: Any) -> Any:
    """What may be shown for a preview, None for nothing."""
    if image is None or not _is_checked():
        return image
    chosen = mode()
    if chosen == JUDGED:
        return checking.gate(image, record=False, job=_job())
    if chosen == MOSAIC:
        hidden = _mosaic(image)
        checking.let_through(hidden, job=_job())
        return hidden
    return None


def _job() -> jobs.Job | None:
    """Whose picture it is: a frame may be asked for when its request has just ended."""
    return jobs.current() or jobs.last()


def _is_checked() -> bool:
    job = _job()
    if job is not None:
        return bool(job.protection.images)
    from . import settings

    return bool(settings.standing().images)


def _mosaic(image: Image.Image) -> Image.Image:
    pixels = torch.from_numpy(np.array(image.convert("RGB")))[None]
    _, height, width, _ = pixels.shape
    hidden = censor.hide(pixels, [[(0.0, 0.0, float(width), float(height))]])
    return Image.fromarray(hidden[0].numpy())


WRAPS = (
    Wrap(
        "modules.shared_state:State.do_set_current_image",
        _make,
        "every poll of the progress would decode and judge a preview of its own",
    ),
    Wrap(
        "modules.shared_state:State.assign_current_image",
        _assign,
        "previews would show every step of a picture that is withheld in the end",
    ),
)
