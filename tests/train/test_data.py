# SPDX-License-Identifier: GPL-3.0-or-later
"""The training folder: every kind of picture, every kind of fault."""

from __future__ import annotations

import json

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from safegen_core.detect.censor import mosaic  # noqa: E402
from safegen_core.errors import DataError  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.data import read_dataset  # noqa: E402
from safegen_core.train.pictures import open_upright, square, square_boxes  # noqa: E402


def read(folder, resolution=8, cell=2, provider=None, **settings):
    settings = config.Data(folder=str(folder), **{"block": 4, "regions": "boxes", **settings})
    return read_dataset(settings, resolution, cell, regions=provider)


def refused(folder, code, **settings) -> str:
    with pytest.raises(DataError) as error:
        read(folder, **settings)
    assert error.value.code == code
    return error.value.message


def noise(size=(8, 8), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_reads_roles_captions_mosaics_and_masks(pictures):
    found = read(pictures)
    counts = [len(x) for x in (found.unsafe, found.mosaic, found.benign, found.near_miss)]
    assert counts == [5, 5, 6, 2]
    assert [picture.caption for picture in found.unsafe[:2]] == ["a blue circle", "a red star"]
    wanted = torch.zeros(1, 4, 4)
    wanted[:, :2, :2] = 1  # the box covers pixels 0..3, cells of 2
    assert torch.equal(found.mask.float(), wanted.expand(5, 1, 4, 4))
    pixels = torch.from_numpy(found.unsafe[0].read().copy())[None]
    made = mosaic(pixels, [[(0, 0, 4, 4)]], 4)[0].numpy()
    assert (found.mosaic[0].read() == made).all()


def test_nothing_in_the_folder_changes(own_pictures):
    before = {path: path.read_bytes() for path in own_pictures.rglob("*") if path.is_file()}
    read(own_pictures)
    assert {p: p.read_bytes() for p in own_pictures.rglob("*") if p.is_file()} == before


def test_digest_follows_content_not_names(own_pictures):
    first = read(own_pictures).digest()
    for suffix in ("png", "txt"):
        (own_pictures / "benign" / f"0.{suffix}").rename(own_pictures / "benign" / f"z.{suffix}")
    assert read(own_pictures).digest() == first
    noise(seed=9).save(own_pictures / "benign" / "z.png")
    assert read(own_pictures).digest() != first


def test_given_mosaic_is_taken_and_its_difference_is_the_region(own_pictures):
    (own_pictures / "boxes.jsonl").unlink()
    (own_pictures / "mosaic").mkdir()
    for path in (own_pictures / "unsafe").glob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[4:, 4:] = 255 - pixels[4:, 4:]  # no channel of any pixel stays the same
        Image.fromarray(pixels).save(own_pictures / "mosaic" / path.name)
    found = read(own_pictures)
    assert [picture.name for picture in found.mosaic] == [f"mosaic/{i}.png" for i in range(5)]
    assert (found.mask[:, 0, 2:, 2:] > 0.7).all()
    assert found.mask[:, 0, :2].sum() == found.mask[:, 0, :, :2].sum() == 0


def test_a_region_provider_is_asked_instead_of_the_file(own_pictures):
    asked = []

    class Corner:
        def regions(self, image, name):
            asked.append((tuple(image.shape), image.dtype, name))
            return [(6.0, 6.0, 8.0, 8.0)]

    found = read(own_pictures, provider=Corner())
    assert asked[0] == ((8, 8, 3), torch.uint8, "unsafe/0.png")
    assert found.mask[0, 0].nonzero().tolist() == [[3, 3]]


def test_pictures_without_region_are_listed_and_never_guessed(own_pictures):
    (own_pictures / "boxes.jsonl").write_text('{"file": "unsafe/0.png", "boxes": [[0, 0, 4, 4]]}')
    message = refused(own_pictures, "data_bad")
    assert "unsafe/1.png: no mosaic and no region" in message
    assert "4 pictures" in message
    found = read(own_pictures, on_bad="skip")
    assert [picture.name for picture in found.unsafe] == ["unsafe/0.png"]
    assert len(found.skipped) == 4


def test_all_unusable_is_an_error_even_when_skipping(own_pictures):
    (own_pictures / "boxes.jsonl").unlink()
    assert "unsafe" in refused(own_pictures, "data_empty", on_bad="skip")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a picture at all"),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: path.write_bytes(path.read_bytes()[:50] + b"\0" * 40),
    ],
    ids=["empty", "text", "truncated", "garbled"],
)
@pytest.mark.parametrize("role", ["unsafe", "benign"])
def test_corrupt_pictures_are_named(own_pictures, damage, role):
    damage(own_pictures / role / "2.png")
    assert f"{role}/2.png: unreadable" in refused(own_pictures, "data_bad")
    found = read(own_pictures, on_bad="skip")
    assert f"{role}/2.png" not in [picture.name for picture in found.pictures()]


def test_mosaic_of_another_size_orphans_and_no_change(own_pictures):
    (own_pictures / "mosaic").mkdir()
    noise((9, 8)).save(own_pictures / "mosaic" / "0.png")
    noise().save(own_pictures / "mosaic" / "77.png")
    (own_pictures / "mosaic" / "1.png").write_bytes((own_pictures / "unsafe/1.png").read_bytes())
    (own_pictures / "mosaic" / "2.png").write_bytes(b"?")
    message = refused(own_pictures, "data_bad")
    assert "mosaic/0.png: is 9x8, its picture 8x8" in message
    assert "mosaic/77.png: no picture of this name" in message
    assert "mosaic/1.png: hides nothing" in message
    assert "mosaic/2.png: unreadable" in message


def test_a_mosaic_of_single_pixels_hides_nothing(own_pictures):
    message = refused(own_pictures, "data_bad", block=1)
    assert "unsafe/0.png (mosaic): hides nothing" in message


def test_one_picture_in_two_roles_is_a_contradiction(own_pictures):
    (own_pictures / "benign" / "x.png").write_bytes((own_pictures / "unsafe/3.png").read_bytes())
    message = refused(own_pictures, "data_contradiction", on_bad="skip")
    assert "benign/x.png" in message
    assert "unsafe/3.png" in message


def test_duplicates_in_a_role_are_used_once(own_pictures, caplog):
    (own_pictures / "benign" / "x.png").write_bytes((own_pictures / "benign/3.png").read_bytes())
    assert len(read(own_pictures).benign) == 6
    assert "benign/x.png is the same picture as benign/3.png" in caplog.text


def test_missing_and_empty_folders(tmp_path, own_pictures):
    assert str(tmp_path / "none") in refused(tmp_path / "none", "data_missing")
    for path in (own_pictures / "benign").iterdir():
        path.unlink()
    assert "benign" in refused(own_pictures, "data_empty")


def test_captions_from_json_lines_and_text_wins(own_pictures):
    folder = own_pictures / "benign"
    (folder / "0.txt").unlink()
    lines = [{"file": "0.png", "text": "from json"}, {"file_name": "1.png", "caption": "hidden"}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = {picture.name: picture.caption for picture in read(own_pictures).benign}
    assert found["benign/0.png"] == "from json"
    assert found["benign/1.png"] == "a red star"


HOSTILE = ["[" * 100_000, '{"file": "0.png", "text": "\\ud800"}']


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"file": "0.png"}', '{"file": 1, "text": "x"}', *HOSTILE]
)
def test_bad_caption_lines_are_named(own_pictures, line):
    (own_pictures / "unsafe" / "metadata.jsonl").write_text(f"\n{line}\n")
    assert "metadata.jsonl line 2" in refused(own_pictures, "data_captions")


def test_a_byte_order_mark_is_no_caption(own_pictures):
    folder = own_pictures / "benign"
    (folder / "0.txt").write_text("a star", encoding="utf-8-sig")
    (folder / "1.txt").unlink()
    line = json.dumps({"file": "1.png", "text": "a moon"})
    (folder / "captions.jsonl").write_text(line, encoding="utf-8-sig")
    found = {picture.name: picture.caption for picture in read(own_pictures).benign}
    assert (found["benign/0.png"], found["benign/1.png"]) == ("a star", "a moon")


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.AVIF", "a.heic", "noext"])
@pytest.mark.parametrize("role", ["unsafe", "mosaic", "benign", "near_miss"])
def test_files_of_other_formats_are_named(own_pictures, role, name):
    (own_pictures / role).mkdir(exist_ok=True)
    (own_pictures / role / name).write_bytes(b"GIF89a")
    assert f"{role}/{name}: not a supported format" in refused(own_pictures, "data_bad")
    assert len(read(own_pictures, on_bad="skip").skipped) == 1


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "notes.txt", "captions.jsonl"])
def test_files_that_are_no_pictures_pass(own_pictures, name):
    (own_pictures / "unsafe" / name).write_bytes(b"")
    assert read(own_pictures).skipped == []


@pytest.mark.parametrize("box", [[100, 100, 110, 110], [0, 0, 3, 8]], ids=["outside", "cropped"])
def test_boxes_that_miss_the_crop_are_told_from_no_boxes(own_pictures, box):
    noise((16, 8), seed=9).save(own_pictures / "unsafe" / "wide.png")
    with (own_pictures / "boxes.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file": "unsafe/wide.png", "boxes": [box]}))
    message = refused(own_pictures, "data_bad")
    assert "unsafe/wide.png: its boxes lie outside the square crop" in message


def test_caption_that_is_no_text(own_pictures):
    (own_pictures / "unsafe" / "0.txt").write_bytes(b"\xff\xfe\xff")
    assert "0.txt" in refused(own_pictures, "data_captions")


@pytest.mark.parametrize(
    "line",
    [
        *("{", "3", '{"file": "0.png"}', '{"file": "a", "boxes": [[0, 0, 1]]}'),
        *('{"file": "a", "boxes": [[4, 0, 1, 1]]}', '{"file": "a", "boxes": [["x", 0, 1, 1]]}'),
    ],
)
def test_bad_box_lines_are_named(own_pictures, line):
    (own_pictures / "boxes.jsonl").write_text(f'{{"file": "0.png", "boxes": []}}\n{line}\n')
    assert "boxes.jsonl line 2" in refused(own_pictures, "data_boxes")


def test_exif_rotation_is_applied(tmp_path):
    image = noise((6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to look at it
    image.save(tmp_path / "turned.png", exif=exif)
    turned = open_upright(tmp_path / "turned.png")
    assert turned.size == (4, 6)
    assert (np.asarray(turned) == np.asarray(image.transpose(Image.Transpose.ROTATE_270))).all()


def test_transparency_becomes_white_and_grey_becomes_rgb(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    image.save(tmp_path / "alpha.png")
    pixels = np.asarray(open_upright(tmp_path / "alpha.png"))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[0, 7].tolist() == [255, 255, 255]
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert np.asarray(open_upright(tmp_path / "grey.png"))[3, 3].tolist() == [77, 77, 77]
    Image.fromarray(np.full((8, 8), 257 * 77, np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(open_upright(tmp_path / "deep.png"))[3, 3].tolist() == [77, 77, 77]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(open_upright(tmp_path / "palette.png"))[0, 0].tolist() == [255, 255, 255]


def test_16_bit_grey_as_old_pillow_opens_it(tmp_path):
    """Pillow 9.5 opens a 16-bit PNG in mode I, as this one still opens a 32-bit TIFF."""
    Image.fromarray(np.full((8, 8), 257 * 77, np.int32)).save(tmp_path / "deep.tif")
    with Image.open(tmp_path / "deep.tif") as image:
        assert image.mode == "I"
    assert np.asarray(open_upright(tmp_path / "deep.tif"))[3, 3].tolist() == [77, 77, 77]


@pytest.mark.parametrize(
    "values",
    [
        np.full((8, 8), 70_000, np.int32),
        np.full((8, 8), -1, np.int32),
        np.full((8, 8), 0.5, np.float32),
    ],
    ids=["32 bits", "negative", "float"],
)
def test_deeper_grey_is_a_bad_picture(own_pictures, values):
    Image.fromarray(values).save(own_pictures / "benign" / "0.png", format="TIFF")
    assert "benign/0.png: unreadable (its grey values" in refused(own_pictures, "data_bad")


@pytest.mark.parametrize("size", [(16, 8), (8, 16), (30, 20), (8, 8), (5, 7)])
def test_boxes_follow_the_crop(size):
    """A red patch painted into a box is where the moved box says."""
    width, height = size
    image = Image.new("RGB", size, "white")
    box = (width * 0.5, height * 0.5, width * 0.7, height * 0.7)
    edges = tuple(round(side) for side in box)
    image.paste((255, 0, 0), edges)
    moved = square_boxes([edges], size, 80)
    red = (square(image, 80)[..., 1] < 128).nonzero()
    found = (red[1].min(), red[0].min(), red[1].max() + 1, red[0].max() + 1)
    assert moved[0] == pytest.approx(found, abs=2)


def test_a_box_outside_the_crop_is_no_region():
    assert square_boxes([(0, 0, 3, 8)], (16, 8), 8) == []
    assert square_boxes([(0, 0, 6, 8)], (16, 8), 8) == [(0.0, 0.0, 2.0, 8.0)]
