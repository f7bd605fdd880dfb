# SPDX-License-Identifier: GPL-3.0-or-later
"""Any ONNX image classifier as a detector; a JSON beside it says how to feed it.

It sees the whole picture, so that is the region of all its labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DetectorError
from ..header import printable
from . import Detection, Reading
from .classifier_file import Recipe
from .network import Backend, Network, open_network

_BATCH = 16  # on an accelerator; on a CPU a batch costs what its pictures cost
_MAX_CROPS = 16  # of one picture; nobody knows what is in a picture that needs more

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


class Classifier:
    """A detector made of a network and a recipe.

    Args:
        name: what a policy calls it.
        recipe: how to use the network.
        network: the opened file.

    Raises:
        DetectorError: `detector_checksum`, or `detector_config_model` where recipe and network
            contradict each other.
    """

    def __init__(self, name: str, recipe: Recipe, network: Network) -> None:
        self._recipe, self._network = recipe, network
        self.name = name
        self.labels = tuple(recipe.labels)
        digest = network.model.sha256
        if recipe.sha256 not in (None, digest):
            raise DetectorError(
                "detector_checksum",
                f"Detector {printable(name)}: {recipe.model} has SHA-256 {digest}, and its .json "
                f"asks for {recipe.sha256}. Get the right file, or correct the .json.",
            )
        self.id = f"{name}-{digest[:8]}@{recipe.digest[:8]}"
        self._at_once = self._batch_size()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        backend: Backend = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> Classifier:
        """Open the classifier a JSON file describes; its name is the file's, without `.json`.

        Args:
            path: the JSON file; the model lies in the same folder.
            backend: see `open_network`.
            device: see `open_network`.
            threads: see `open_network`.

        Raises:
            DetectorError: the JSON (`detector_config_...`) or the model is refused.
        """
        if not re.fullmatch(r"[\w][\w.+-]{0,63}", path.stem):
            raise DetectorError(
                "detector_config_name",
                f"Detector description {printable(path)}: its name is the detector's and must be "
                "letters, digits, - and _.",
            )
        recipe = Recipe.read(path)
        file = path.parent / recipe.model
        network = open_network(file, backend=backend, device=device, threads=threads)
        return cls(path.stem, recipe, network)

    def detect(self, images: Sequence[Tensor]) -> list[Reading]:
        """See `Detector`. Raises `detector_output`, `detector_shape`, or what the network does."""
        strongest: list[np.ndarray | None] = [None] * len(images)
        inputs = ((i, view) for i, image in enumerate(images) for view in self._views(image))
        while chunk := list(islice(inputs, self._at_once)):
            batch = self._prepared([view for _, view in chunk])
            for (i, _), scores in zip(chunk, self._scores(batch), strict=True):
                before = strongest[i]
                strongest[i] = scores if before is None else np.maximum(before, scores)
        return [
            self._reading(image, scores)
            for image, scores in zip(images, strongest, strict=True)
            if scores is not None  # every picture has at least one view
        ]

    def _views(self, image: Tensor) -> Iterator[np.ndarray]:
        """The picture in the network's size, uint8 RGB; several where it crops."""
        if (
            image.ndim != 3
            or image.shape[2] != 3
            or image.dtype != torch.uint8
            or not image.numel()
        ):
            raise DetectorError(
                "detector_shape",
                f"A detector takes uint8 RGB [H, W, 3], not {image.dtype} {tuple(image.shape)}.",
            )
        picture = Image.fromarray(image.cpu().numpy())
        height, width = self._recipe.size
        how = _FILTERS[self._recipe.interpolation]
        if self._recipe.resize == "pad":
            scale = min(height / picture.height, width / picture.width)
            inner = (
                min(width, max(1, round(picture.width * scale))),
                min(height, max(1, round(picture.height * scale))),
            )
            square = Image.new("RGB", (width, height), self._recipe.pad_color)
            corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
            square.paste(picture.resize(inner, how), corner)
            yield np.asarray(square)
            return
        boxes = [(0.0, 0.0, float(picture.width), float(picture.height))]
        if self._recipe.resize == "crop":
            boxes = _crops(picture.width, picture.height, width / height)
        for box in boxes:
            yield np.asarray(picture.resize((width, height), how, box))

    def _prepared(self, views: Sequence[np.ndarray]) -> Tensor:
        """Views as the network wants them, float32 `[B, 3, h, w]` or `[B, h, w, 3]`."""
        recipe = self._recipe
        pixels = torch.from_numpy(np.stack(views)).to(torch.float32)
        if recipe.channels == "bgr":
            pixels = pixels.flip(-1)
        pixels = pixels * (recipe.range[1] / 255)
        pixels = (pixels - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
        return pixels.permute(0, 3, 1, 2).contiguous() if recipe.layout == "nchw" else pixels

    def _scores(self, batch: Tensor) -> np.ndarray:
        """Scores of the labels in 0..1, `[B, labels]`."""
        answer = self._network.run(batch.to(self._network.device))
        last = max(max(outputs) for outputs in self._recipe.labels.values())
        if answer.ndim != 2 or len(answer) != len(batch) or answer.shape[1] <= last:
            raise DetectorError(
                "detector_output",
                f"Detector {self.name} answered with shape {tuple(answer.shape)}; expected "
                f"[{len(batch)}, more than {last}].",
            )
        answer = answer.double()
        if self._recipe.activation == "softmax":
            answer = answer.softmax(1)
        elif self._recipe.activation == "sigmoid":
            answer = answer.sigmoid()
        columns = [answer[:, list(outputs)].amax(1) for outputs in self._recipe.labels.values()]
        scores = torch.stack(columns, 1).numpy()
        # Mostly a wrong `activation`: raw outputs taken for probabilities.
        if not -0.001 <= scores.min() <= scores.max() <= 1.001:  # and so for NaN
            raise DetectorError(
                "detector_output",
                f"Detector {self.name} answered with scores outside 0..1. If that is so for every "
                'picture, "activation" in its .json is wrong.',
            )
        return scores.clip(0, 1)

    def _reading(self, image: Tensor, scores: np.ndarray) -> Reading:
        height, width = image.shape[:2]
        box = (0.0, 0.0, float(width), float(height))
        by_label = dict(zip(self.labels, map(float, scores), strict=True))
        found = sorted(by_label.items(), key=lambda item: -item[1])
        return Reading(by_label, tuple(Detection(label, score, box) for label, score in found))

    def _batch_size(self) -> int:
        """How many pictures a run may hold; checks what the file says about its input."""
        recipe, takes = self._recipe, self._network.model.inputs[0].shape
        height, width = recipe.size
        feeds = (3, height, width) if recipe.layout == "nchw" else (height, width, 3)
        if takes is not None and (
            len(takes) != 4
            or takes[0] not in (None, 1)
            or any(a not in (None, b) for a, b in zip(takes[1:], feeds, strict=True))
        ):
            sides = ", ".join(str(side or "any") for side in takes)
            raise DetectorError(
                "detector_config_model",
                f"Detector {self.name}: {recipe.model} takes [{sides}], and its .json would feed "
                f"[batch, {', '.join(map(str, feeds))}]. Correct size and layout there, or export "
                "the model with a free batch or a batch of 1.",
            )
        one = takes is not None and takes[0] == 1
        return 1 if one or self._network.device.type == "cpu" else _BATCH


def _crops(width: int, height: int, ratio: float) -> list[tuple[float, float, float, float]]:
    """Boxes of one aspect ratio (width / height) that together show the whole picture."""
    crop_width, crop_height = min(width, height * ratio), min(height, width / ratio)
    # A hair below a whole number is that number: 448 / 448 must not need two.
    columns = math.ceil(width / crop_width - 1e-6)
    rows = math.ceil(height / crop_height - 1e-6)
    if columns * rows > _MAX_CROPS:
        raise DetectorError(
            "detector_shape",
            f"A picture of {width} x {height} pixels is too long and thin to look at all of it.",
        )
    left = np.linspace(0, width - crop_width, columns)
    top = np.linspace(0, height - crop_height, rows)
    return [
        (float(x), float(y), float(min(width, x + crop_width)), float(min(height, y + crop_height)))
        for y in top
        for x in left
    ]
