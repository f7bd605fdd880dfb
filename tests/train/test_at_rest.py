# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves on the disk: no training picture, in whatever form, but the review sheet's."""

from __future__ import annotations

import re

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.storage import Weights  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.data import read_dataset  # noqa: E402
from safegen_core.train.loop import train  # noqa: E402

SHEET = "review.html"
MAGIC = re.compile(rb"\x89PNG|\xff\xd8\xff[\xe0\xe1\xdb]|RIFF....WEBP|GIF8|PK\x03\x04", re.DOTALL)


def as_bytes(pixels):
    """A picture in the forms somebody might keep it in."""
    for values in (pixels, pixels.astype(np.float32), pixels.astype(np.float32) / 127.5 - 1):
        for order in (values, values.transpose(2, 0, 1)):
            yield np.ascontiguousarray(order).tobytes()


def test_a_run_leaves_no_training_pictures(make_config, pictures, tmp_path):
    known = {file: file.read_bytes() for file in pictures.rglob("*") if file.is_file()}
    train(make_config())
    assert {f: f.read_bytes() for f in pictures.rglob("*") if f.is_file()} == known
    data = config.Data(folder=str(pictures), block=4, regions="boxes")
    dataset = read_dataset(data, 8, 2)
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.parent.name == "cache" for file in left)
    for file in left:
        content = file.read_bytes()
        if content and file.name != SHEET:
            assert file.suffix in (".toml", ".jsonl", ".safetensors", ".json"), file
            assert not MAGIC.search(content[:64]), file
            assert b"base64" not in content, file
        for picture in dataset.pictures():
            assert not any(form in content for form in as_bytes(picture.read())), file
        assert not any(picture in content for picture in known.values() if len(picture) > 64), file
        if file.suffix == ".safetensors":
            kinds = {Weights(file).dtype(name) for name in Weights(file).shapes}
            assert all(kind.is_floating_point for kind in kinds), file
