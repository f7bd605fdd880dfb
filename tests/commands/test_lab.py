# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen lab explain` draws what the sanitizer found."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("PIL.Image")

from PIL import Image

from safegen_core.cli import main


def test_a_heat_map_of_each_verdict_and_theme(tmp_path, capsys):
    pictures = []
    for prompt, told, theme in (
        ("a blue circle", "handed on as it is", "light"),
        ("a red striped star at night", "cleaned", "light"),
        ("a red striped star at night", "cleaned", "dark"),
    ):
        out = tmp_path / "heat.png"  # the same file: it is replaced
        assert main(["lab", "explain", prompt, "--out", str(out), "--theme", theme]) == 0
        assert told in capsys.readouterr().out
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            pictures.append(picture.convert("RGB").tobytes())
    assert len(set(pictures)) == 3
