# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark leaves: its figures as JSON, and the same to read as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegen_core.atomic import atomic_path


def write(folder: Path, name: str, figures: Mapping[str, Any], text: str) -> None:
    """Write `name.json` and `name.md`, each whole or not at all, and show the text."""
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(figures, indent=1, ensure_ascii=False)
    for file, content in ((f"{name}.json", f"{values}\n"), (f"{name}.md", text)):
        with atomic_path(folder / file, overwrite=True) as part:
            part.write_text(content, encoding="utf-8")
    print(text)
