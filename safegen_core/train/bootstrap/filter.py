# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's own say in what the base may draw for training.

The detector finds what is to be removed; it does not tell what must not be drawn at all. A base may
draw a person whose age one cannot tell, or somebody one knows, whatever the words were. Whoever has
a classifier for that puts it here: a picture it does not clearly accept is dropped at once, and so
it is in any doubt: an exception, an answer that is no bool. A function that never answers keeps
nothing either; one that may hang should bring its own time limit and raise.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ...errors import SafeGenError
from ...header import printable


@dataclass
class Filter:
    """A function that is asked about every picture before it may be trained on.

    Attributes:
        name: "module:function", as given.
        function: called with uint8 RGB `[H, W, 3]` (a copy of its own); True keeps the picture.
        failures: what went wrong inside it, by kind, without its words: they may tell of a picture.
    """

    name: str
    function: Callable[[np.ndarray], object]
    failures: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls, name: str) -> Filter:
        """Import "module:function".

        Raises:
            SafeGenError: `bootstrap_filter`, whatever goes wrong: a filter that was asked for and
                is not there must stop the run, not let everything pass.
        """
        module, _, function = name.partition(":")
        if not module or not function:
            raise SafeGenError(
                "bootstrap_filter",
                f"--bootstrap-filter is {printable(repr(name))}; it must be MODULE:FUNCTION, as in "
                "my_checks:accept.",
            )
        try:
            found = getattr(importlib.import_module(module), function)
        except (Exception, SystemExit) as error:  # somebody's module: it may fail in any way
            raise SafeGenError(
                "bootstrap_filter",
                f"The filter {printable(name)} cannot be imported: {type(error).__name__}: "
                f"{printable(error)}. Its folder must be on PYTHONPATH.",
            ) from error
        if not callable(found):
            raise SafeGenError("bootstrap_filter", f"The filter {printable(name)} is no function.")
        return cls(name, found)

    def keeps(self, picture: torch.Tensor) -> bool:
        """Whether the function says True of uint8 RGB `[H, W, 3]`; False in any doubt."""
        try:
            answer = self.function(picture.cpu().numpy().copy())
        except Exception as error:  # fails closed
            self.failures[type(error).__name__] += 1
            return False
        if not isinstance(answer, (bool, np.bool_)):
            self.failures[f"answered {type(answer).__name__}, not bool"] += 1
            return False
        return bool(answer)
