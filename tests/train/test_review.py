# SPDX-License-Identifier: GPL-3.0-or-later
"""The review sheet: every mosaic, who says where, what was left out; never the picture itself."""

from __future__ import annotations

import base64
import dataclasses
import io
import re

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("jinja2")

from PIL import Image  # noqa: E402

from safegen_core.errors import DataError  # noqa: E402
from safegen_core.train import config, review  # noqa: E402
from safegen_core.train.data import read_dataset  # noqa: E402
from safegen_core.train.regions import Region  # noqa: E402


def read(folder, resolution=8, **settings):
    settings = {"regions": "boxes", "block": 4, **settings}
    return read_dataset(config.Data(folder=str(folder), **settings), resolution, 2)


def shown(page) -> list[np.ndarray]:
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_shows_the_mosaic_with_its_outline_and_nothing_of_the_picture(tmp_path):
    for role in ("unsafe", "benign"):
        (tmp_path / role).mkdir()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # their mosaic is plain grey
    Image.fromarray(stripes).save(tmp_path / "unsafe" / "a.png")
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "benign" / "b.png")
    (tmp_path / "boxes.jsonl").write_text('{"file": "a.png", "boxes": [[16, 8, 48, 56]]}')
    review.write(read(tmp_path, 64, block=8), tmp_path / "review.html")
    (picture,) = shown((tmp_path / "review.html").read_text())
    scale = review.SIDE / 64
    inside = picture[int(12 * scale) : int(52 * scale), int(20 * scale) : int(44 * scale)]
    assert inside.std() < 3, "the stripes are gone where the box is"
    assert picture[:, : int(12 * scale)].std() > 40, "and there beside it"
    edge = picture[int(32 * scale), int(16 * scale) + 1].astype(int)
    assert edge[0] - edge[2] > 80, "a yellow line stands on the edge"


def test_a_mosaic_too_fine_to_hide_is_hidden_here(tmp_path):
    for seed, role in enumerate(("unsafe", "benign")):
        (tmp_path / role).mkdir()
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 2, (16, 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1) * 255
        pixels[::16] -= pixels[::16] // 8  # so that cells of 2 are not the picture
        Image.fromarray(pixels).save(tmp_path / role / "a.png")
    (tmp_path / "boxes.jsonl").write_text('{"file": "unsafe/a.png", "boxes": [[0, 0, 256, 256]]}')
    dataset = read(tmp_path, 256, block=2)
    fine = dataset.mosaic[0].read().reshape(8, 32, 8, 32, 3)
    assert fine.std((1, 3)).mean() > 50
    review.write(dataset, tmp_path / "review.html")
    (picture,) = shown((tmp_path / "review.html").read_text())
    side = review.SIDE // 8
    cells = picture.astype(float).reshape(8, side, 8, side, 3)[1:-1, 6:-6, 1:-1, 6:-6]
    assert cells.std((1, 3)).mean() < 8


def test_says_who_says_where_and_what_was_left_out(own_pictures):
    (own_pictures / "unsafe" / "1.png").write_bytes(b"?")
    dataset = read(own_pictures, on_bad="skip")
    dataset.regions[0] = Region(dataset.regions[0].boxes, "nudenet", (("FACE", 0.912),))
    review.write(dataset, own_pictures / "review.html")
    page = (own_pictures / "review.html").read_text(encoding="utf-8")
    assert len(shown(page)) == 4
    assert "nudenet: FACE 0.91" in page
    assert page.count("drawn boxes</span>") == 3
    assert "unsafe/1.png: unreadable" in page
    assert "drawn boxes (3), nudenet (1)" in review.told(dataset)
    assert "1 left out" in review.told(dataset)


def test_names_are_text_not_html(own_pictures):
    name = "<img src=x>.png"
    try:
        (own_pictures / "unsafe" / "0.png").rename(own_pictures / "unsafe" / name)
    except OSError:
        pytest.skip("no such names on this system")
    (own_pictures / "boxes.jsonl").open("a").write(
        '\n{"file": "unsafe/<img src=x>.png", "boxes": [[0, 0, 4, 4]]}'
    )
    review.write(read(own_pictures), own_pictures / "review.html")
    page = (own_pictures / "review.html").read_text(encoding="utf-8")
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;.png" in page


def test_a_mosaic_replaced_by_its_picture_is_not_written(own_pictures, tmp_path):
    (own_pictures / "mosaic").mkdir()
    for file in (own_pictures / "unsafe").glob("*.png"):
        image = Image.open(file).copy()
        image.paste((9, 9, 9), (0, 0, 4, 4))
        image.save(own_pictures / "mosaic" / file.name)
    dataset = read(own_pictures)
    (own_pictures / "mosaic/3.png").write_bytes((own_pictures / "unsafe/3.png").read_bytes())
    with pytest.raises(DataError) as error:
        review.write(dataset, tmp_path / "review.html")
    assert error.value.code == "data_changed"
    assert not (tmp_path / "review.html").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_picture_is_not_read_for_it(own_pictures, tmp_path):
    dataset = read(own_pictures)

    def refuse():
        raise AssertionError("an unsafe picture was read")

    dataset.unsafe = [dataclasses.replace(picture, read=refuse) for picture in dataset.unsafe]
    review.write(dataset, tmp_path / "review.html")
    assert len(shown((tmp_path / "review.html").read_text())) == 5


def test_without_unsafe_pictures(own_pictures, tmp_path):
    dataset = read(own_pictures).head(0)
    review.write(dataset, tmp_path / "review.html")
    assert shown((tmp_path / "review.html").read_text()) == []
