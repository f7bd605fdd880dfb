# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies show what the guard allows, and carry nothing else."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from safegen_core.scan.copies import Copies, plain
from safegen_core.scan.output_folder import MARK

SECRET = b"the prompt"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def busy(draw):
    """A red corner for the detector, and a fine pattern that censoring must destroy."""

    def make():
        image = draw("red", size=(64, 64))
        for x in range(1, 32):
            for y in range(1, 32):
                image.putpixel((x, y), (255, 255, 255) if (x + y) % 2 else (0, 0, 0))
        return image

    return make


def contrast(image):
    low, high = image.convert("L").crop((4, 4, 28, 28)).getextrema()
    return high - low


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "gif"])
def test_a_copy_hides_the_region_and_has_the_source_s_format(folder, look, busy, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    busy().save(folder / f"a.{suffix}", **options)
    (result,) = look(folder, copies=Copies(folder.parent / "out"))
    with Image.open(folder / f"a.{suffix}") as before, Image.open(result.copy) as after:
        assert after.format == before.format
        assert after.size == before.size
        assert contrast(before) > 200
        assert contrast(after) < 60


def test_nothing_but_pixels_comes_along(folder, look, busy):
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", SECRET.decode())
    text.add_itxt("more", SECRET.decode())
    busy().save(folder / "a.png", pnginfo=text, exif=exif)
    busy().save(folder / "b.webp", lossless=True, exif=exif, xmp=SECRET, icc_profile=SECRET)
    busy().save(folder / "c.tif", exif=exif, description=SECRET.decode())
    busy().save(folder / "d.gif", comment=SECRET)
    busy().resize((256, 256), 0).save(folder / "e.jpg", exif=exif, comment=SECRET, quality=100)
    results = look(folder, copies=Copies(folder.parent / "out"))
    assert len([result for result in results if result.copy]) == 5
    for result in results:
        with open(result.copy, "rb") as copy, open(result.path, "rb") as original:
            assert SECRET in original.read()
            assert SECRET not in copy.read()


def test_rotation_is_applied_not_copied(folder, look, draw):
    image = draw("red", size=(64, 32))
    image.paste("red", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "a.png", exif=exif)
    (result,) = look(folder, copies=Copies(folder.parent / "out"))
    with Image.open(result.copy) as copy:
        assert copy.size == (32, 64)
        assert not copy.getexif()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_stay_animations(folder, look, draw, suffix):
    frames = [draw(color) for color in ("white", "red", "magenta", "black")]
    durations = [100, 200, 300, 400]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(
        folder / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=3,
        **options,
    )
    (result,) = look(folder, copies=Copies(folder.parent / "out"))
    with Image.open(result.copy) as copy:
        assert copy.n_frames == 4
        assert copy.info["loop"] == 3
        told = []
        for index in range(4):
            copy.seek(index)
            copy.load()
            told.append(copy.info["duration"])
            if index == 0:
                assert copy.convert("RGB").getpixel((20, 10)) == (255, 255, 255)
            if index == 2:  # withheld: a sign stands there
                assert max(copy.convert("RGB").getpixel((2, 2))) < 120
        assert told == durations


def test_withheld_pictures_become_a_sign(folder, look, draw):
    draw("magenta").save(folder / "a.png")
    (result,) = look(folder, copies=Copies(folder.parent / "out"))
    with Image.open(result.copy) as copy:
        assert copy.size == (48, 32)
        assert max(copy.convert("RGB").getpixel((1, 1))) < 120


def test_existing_files_are_replaced_only_on_demand(folder, look, draw):
    draw("red").save(folder / "a.png")
    out = folder.parent / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    (result,) = look(folder, copies=Copies(out))
    assert result.copy is None
    assert result.note.startswith("No copy: ")
    assert (out / "a.png").read_bytes() == b"mine"
    (result,) = look(folder, copies=Copies(out, overwrite=True))
    assert result.copy == str(out / "a.png")
    assert (out / "a.png").read_bytes() != b"mine"


def test_members_go_into_a_folder_named_after_the_zip(folder, look, draw):
    draw("red").save(folder.parent / "r.png")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.write(folder.parent / "r.png", "in/r.png")
    out = folder.parent / "out"
    (result,) = look(folder, copies=Copies(out))
    assert result.copy == str(out / "z.zip" / "in" / "r.png")


def test_two_roots_do_not_collide(tmp_path, look, draw):
    for name in ("1/same", "2/same"):
        (tmp_path / name).mkdir(parents=True)
        draw("red").save(tmp_path / name / "a.png")
    results = look(tmp_path / "1" / "same", tmp_path / "2" / "same", copies=Copies(tmp_path / "o"))
    assert len({result.copy for result in results}) == 2


def test_copies_that_were_not_wished_before_are_made_later(folder, look, draw):
    draw("red").save(folder / "a.png")
    journal = folder.parent / "j"
    (result,) = look(folder, journal=journal)
    assert result.copy is None
    (result,) = look(folder, journal=journal, copies=Copies(folder.parent / "out"))
    assert result.copy is not None


def test_a_picture_a_format_cannot_hold_is_told(refusal, tmp_path):
    huge = Image.new("RGB", (20_000, 1))
    assert refusal(Copies(tmp_path).write, "a.webp", "WEBP", [huge]) in (
        "picture_format",
        "file_unwritable",
    )
    assert refusal(Copies(tmp_path).write, "a", "VIDEO", [huge]) == "picture_format"
    assert [path.name for path in tmp_path.iterdir()] == [MARK]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_plain_pictures_are_rgb_without_anything(draw, mode):
    image = draw("white").convert("L").convert(mode) if mode == "I;16" else draw(mode=mode)
    image.info["parameters"] = "secret"
    shown = plain(image)
    assert shown.mode == "RGB"
    assert shown.info == {}


def test_members_of_one_name_are_numbered_even_if_files_may_be_replaced(folder, look, draw):
    pictures = {}
    for size in (40, 50, 60):
        draw("red", size=(size, 32)).save(folder.parent / "r.png")
        pictures[size] = (folder.parent / "r.png").read_bytes()
    journal, out = folder.parent / "j", folder.parent / "out"
    for _ in range(2):  # the second time over the files of the first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            with zipfile.ZipFile(folder / "z.zip", "w") as archive:
                for name, size in (("a.png", 40), ("a.png", 50), ("A.png", 60)):
                    archive.writestr(name, pictures[size])
        results = look(folder, journal=journal, copies=Copies(out, overwrite=True))
        assert len({Path(result.copy).name.casefold() for result in results}) >= 2
        assert [Image.open(result.copy).width for result in results] == [40, 50, 60]
        os.utime(folder / "z.zip", ns=(1, 1))
    assert sum(path.is_file() for path in (out / "z.zip").iterdir()) == 3


def test_a_copy_of_an_interrupted_run_is_not_replaced_by_its_namesake(folder, draw):
    copies = Copies(folder.parent / "out", overwrite=True)
    first = copies.write("a.png", "PNG", [draw("red")])
    later = Copies(folder.parent / "out", overwrite=True)
    later.keep(str(first))
    assert later.write("a.png", "PNG", [draw()]).name == "a (2).png"
    assert later.write("b.png", "PNG", [draw()]).name == "b.png"


def test_saved_bytes_are_whole_pictures(tmp_path, draw):
    path = Copies(tmp_path).write("deep/er/a.jpg", "MPO", [draw()])
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
        assert image.format == "JPEG"
