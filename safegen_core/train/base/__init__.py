# SPDX-License-Identifier: GPL-3.0-or-later
"""The base model a patch is made for: its parts, what it predicts, and encoded prompts."""

from __future__ import annotations

from .model import BaseModel
from .prompts import Prompts

__all__ = ["BaseModel", "Prompts"]
