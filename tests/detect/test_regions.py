# SPDX-License-Identifier: GPL-3.0-or-later
"""Boxes files: read as people write them, refused by the line when they are wrong."""

from __future__ import annotations

import pytest
import torch

from safegen_core.detect.regions import BoxFile
from safegen_core.errors import DataError

PICTURE = torch.zeros(8, 8, 3, dtype=torch.uint8)
GOOD = '{"file": "unsafe/0.png", "boxes": [[0, 0, 4, 4]]}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_with_and_without_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "boxes.jsonl"
    path.write_text(f"{GOOD}\n\n{GOOD}\n", encoding=encoding)
    assert BoxFile.read(path).regions(PICTURE, "unsafe/0.png") == [(0, 0, 4, 4)] * 2


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "{",
        "[]",
        '{"file": "0.png"}',
        '{"file": "0.png", "boxes": 1}',
        '{"file": "0.png", "boxes": [[0, 0, 4]]}',
        '{"file": "0.png", "boxes": [[4, 0, 4, 4]]}',
        '{"file": "0.png", "boxes": [[0, 0, NaN, 4]]}',
        '{"file": "0.png", "boxes": [[0, 0, 4, 1%s]]}' % ("0" * 400),
        '{"file": "0.png", "boxes": [[0, 0, 4, "\x1b%s"]]}' % ("x" * 99_999),
    ],
    ids=lambda line: line[:50],
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "boxes.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2") as caught:
        BoxFile.read(path)
    assert caught.value.code == "data_boxes"
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 300])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(DataError):
        BoxFile.read(tmp_path / name)
