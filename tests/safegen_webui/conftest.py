# SPDX-License-Identifier: GPL-3.0-or-later
"""A host for the tests of A1111's side: the modules in `host/`, as `modules.*`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest

HOST = Path(__file__).with_name("host")


@pytest.fixture
def webui(monkeypatch):
    """Gives a module of a fresh host by its name ("images" is `modules.images`).

    Small, written for these tests: the names, signatures and order of calls of A1111 1.10.1, and
    that its hooks swallow exceptions.
    """
    from safegen_webui import wraps

    _forget()
    package = types.ModuleType("modules")
    package.__path__ = [str(HOST)]
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setattr(wraps, "_slots", {})
    yield lambda name: importlib.import_module(f"modules.{name}")
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("modules.")]:
        del sys.modules[name]


@pytest.fixture
def reds(monkeypatch):
    """A check that finds red squares, in place of detectors and settings; see `_Reds`."""
    import safegen_webui
    from safegen_webui import checking

    reds = _Reds()
    monkeypatch.setattr(checking, "_shelf", lambda: reds)
    monkeypatch.setattr(checking, "_left", type(checking._left)())
    monkeypatch.setattr(safegen_webui, "settings", reds, raising=False)
    monkeypatch.setitem(sys.modules, "safegen_webui.settings", reds)
    return reds


class _Reds:
    """A detector of red squares, its shelf, and what settings say.

    Attributes:
        seen: how many pictures were looked at, call by call.
        broken: fail for every picture. A picture whose first pixel is (1, 2, 3) always fails.
        mode: of previews.
        between: the policies that stand between requests; an exception is raised instead.
    """

    name, labels = "reds", ("RED", "BLUE")

    def __init__(self):
        self.id, self.seen, self.broken, self.mode = "reds-1", [], False, "judged"
        self.between = ()

    def open(self, name, *, resolution, limits):
        return self

    def detect(self, images):
        from safegen_core.detect import Detection, Reading

        self.seen.append(len(images))
        readings = []
        for image in images:
            if self.broken or image[0, 0].tolist() == [1, 2, 3]:
                raise RuntimeError("cannot look")
            scores, regions = {}, []
            for channel, label in ((0, "RED"), (2, "BLUE")):
                pixels = image.int()
                others = pixels.sum(2) - pixels[..., channel]
                found = ((pixels[..., channel] > 200) & (others < 60)).nonzero()
                scores[label] = 1.0 if len(found) >= 4 else 0.0
                if scores[label]:
                    (y0, x0), (y1, x1) = found.min(0).values.tolist(), found.max(0).values.tolist()
                    regions.append(Detection(label, 1.0, (x0, y0, x1 + 1, y1 + 1)))
            readings.append(Reading(scores, tuple(regions)))
        return readings

    def policy(self, action="censor", label="RED"):
        from safegen_core.policy import Policy

        images = {
            "detectors": ["reds"],
            "labels": {label: {"threshold": 0.5, "action": action}},
            "censor": {"kind": "fill", "grow": 0.1},
        }
        return Policy.from_values({"version": 1, "name": f"{label} {action}", "images": images})

    def protection(self, *policies, **values):
        from safegen_webui.protection import Protection

        return Protection(images=policies or (self.policy(),), **values)

    def standing(self):
        if isinstance(self.between, Exception):
            raise self.between
        return self.protection(*self.between) if self.between else self._nothing()

    def previews(self):
        return self.mode

    def picture(self, *squares, size=(32, 24), mode="RGB"):
        """A grey picture with squares ("red", "lime", "blue") in it."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", size, (90, 100, 110))
        draw = ImageDraw.Draw(image)
        for place, colour in enumerate(squares):
            left = 4 + 12 * place
            draw.rectangle((left, 6, left + 6, 12), fill=colour)
        return image.convert(mode)

    def shows(self, picture, channel=0):
        """Whether a red square can be seen in a picture."""
        import numpy as np

        pixels = np.array(picture.convert("RGB")).astype(int)
        others = pixels.sum(2) - pixels[..., channel]
        return int(((pixels[..., channel] > 200) & (others < 60)).sum()) >= 4

    @staticmethod
    def _nothing():
        from safegen_webui.protection import NOTHING

        return NOTHING


@pytest.fixture
def networks(monkeypatch):
    """The built-in Lora of the host, at work."""
    spec = importlib.util.spec_from_file_location("networks", HOST / "networks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "networks", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lora_for(networks):
    """A LoRA for every layer of a denoiser, from a seed."""
    import torch

    def make(unet, seed=9):
        random = torch.Generator().manual_seed(seed)
        deltas = {
            one.network_layer_name: 0.1 * torch.randn(one.weight.shape, generator=random)
            for _, one in unet.layers()
        }
        return networks.Network(f"lora{seed}", deltas)

    return make
