# SPDX-License-Identifier: GPL-3.0-or-later
"""One small tree of errors.

Every message says what failed, on which thing, and what to do. Every error carries a stable `code`
that hosts, scripts and tests may rely on; the words around it may change. The core may be imported
twice in one process under two names (ComfyUI and A1111 do so), so tell errors apart by `code`,
never by class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class SafeGenError(Exception):
    """Base of every error a user can meet.

    Args:
        code: stable identifier in snake case, prefixed by its branch ("patch_family").
        message: what failed, on which thing, and what to do about it.
    """

    prefix = ""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        if not code.startswith(self.prefix):
            raise ValueError(f"error code {code!r} must start with {self.prefix!r}")
        self.code = code
        self.message = message


class FileError(SafeGenError):
    """A file cannot be read or written: missing, truncated, hostile, pickled, disk full."""

    prefix = "file_"


class ModelError(SafeGenError):
    """A model is of an unknown or refused architecture, or not the one expected."""

    prefix = "model_"


class PatchError(SafeGenError):
    """A patch is malformed, or does not fit the model it is put on."""

    prefix = "patch_"


class ConfigError(SafeGenError):
    """A configuration has an unknown key, a wrong type or a value out of range."""

    prefix = "config_"


class DataError(SafeGenError):
    """Training or evaluation data is missing, empty, corrupt or inconsistent."""

    prefix = "data_"


class SanitizeError(SafeGenError):
    """A prompt is refused, or cannot be judged; or what the sanitizer works with is unusable."""

    prefix = "sanitize_"


class PictureError(SafeGenError):
    """A picture cannot be judged: unreadable, too large, of an unknown shape, dtype or range."""

    prefix = "picture_"


class DetectorError(SafeGenError):
    """A detector is missing, damaged, or failed while looking at pictures."""

    prefix = "detector_"


class PolicyError(SafeGenError):
    """A policy cannot be read, or asks for something nobody here can tell."""

    prefix = "policy_"


@contextlib.contextmanager
def coded() -> Iterator[None]:
    """Let an error of ours show its code, once: hosts report nothing of it but the sentence."""
    try:
        yield
    except SafeGenError as error:
        if f"[{error.code}]" in error.message:
            raise
        raise type(error)(error.code, f"{error.message} [{error.code}]") from error
