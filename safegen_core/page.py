# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages for people, from templates: what is put into one is escaped, and nothing may be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def template(file: Path, **filters: Callable[[Any], str]) -> Template:
    """A Jinja template of HTML.

    Args:
        file: the template; it may include others from its folder.
        filters: what it may call on a value, by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # comes with torch

    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(file.name)
