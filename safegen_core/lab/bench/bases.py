# SPDX-License-Identifier: GPL-3.0-or-later
"""The miniatures a bench measures on: the shipped one, and others from `lab train-base`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ...evaluate.subject import Subject
from ..detectors import DETECTORS, LabDetector, load_detectors
from ..finetune import FINE_TUNES, load_fine_tuned
from ..model import WEIGHTS, load_pipeline
from ..sample import AT_ONCE


@dataclass(frozen=True)
class Miniature:
    """A folder with `base/`, the two judges and the fine-tunes.

    Attributes:
        folder: that folder; the shipped one by default.
    """

    folder: Path = WEIGHTS

    @property
    def pipeline(self) -> Path:
        """The base itself, a diffusers folder."""
        return self.folder / "base"

    def check(self, models: Iterable[str] = ()) -> None:
        """See that everything is there.

        Args:
            models: those wanted, of `setting.MODELS`.

        Raises:
            DataError: `data_base` for what is missing.
        """
        wanted = [self.pipeline / "model_index.json", *self._judges().values()]
        wanted += [self.folder / FINE_TUNES[name].file for name in models if name != "base"]
        missing = [path.relative_to(self.folder).as_posix() for path in wanted if not path.exists()]
        if missing:
            raise DataError(
                "data_base",
                f"{self.folder} lacks {', '.join(missing)}; make another miniature by: "
                "safegen lab train-base --out FOLDER --seed 1",
            )

    def digest(self) -> str:
        """SHA-256 of its weights, but for the fine-tunes."""
        total = hashlib.sha256()
        files = sorted(self.pipeline.rglob("*.safetensors"))
        for path in (*files, *self._judges().values()):
            total.update(path.read_bytes())
        return total.hexdigest()

    def subject(self, model: str = "base") -> Subject:
        """The base, or one of its fine-tunes, freshly loaded."""
        if model == "base":
            return Subject(load_pipeline(self.pipeline), at_once=AT_ONCE)
        return Subject(load_fine_tuned(model, self.pipeline), at_once=AT_ONCE)

    def judges(self) -> list[LabDetector]:
        """Its two judges."""
        return load_detectors(self._judges())

    def _judges(self) -> dict[str, Path]:
        return {name: self.folder / path.name for name, path in DETECTORS.items()}
