# SPDX-License-Identifier: GPL-3.0-or-later
"""Call a loader of diffusers or transformers: quietly, locally, failing in our words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import FileError, SafeGenError
from ...header import printable


def local(load: Any, source: Any, **kwargs: Any) -> Any:
    """Call `load(source, **kwargs)` without its progress bar and warnings.

    Raises:
        FileError: `file_base` for whatever the loader could not load.
    """
    try:
        with _quiet():
            return load(source, **kwargs)
    except SafeGenError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        named = kwargs.get("subfolder", "tokenizer")
        place = kwargs.get("config", "the checkpoint") if isinstance(source, dict) else source
        raise FileError(
            "file_base",
            f"cannot load {named} from {place}: {printable(str(error).strip(), 300)}",
        ) from error


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileError: `file_config` when it is missing or none.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise FileError("file_config", f"cannot read {file}: {printable(error)}") from error
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loaders' own bars and warnings, and leave the caller's choice as it was.

    diffusers warns of every dtype it is asked for (0.42); what matters is checked by us.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [lib for lib in (of_diffusers, of_transformers) if lib.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    verbosity = of_diffusers.get_verbosity()
    of_diffusers.set_verbosity_error()
    try:
        yield
    finally:
        of_diffusers.set_verbosity(verbosity)
        for library in shown:
            library.enable_progress_bar()
