# SPDX-License-Identifier: GPL-3.0-or-later
"""The official trainer's table: what it names, and every way to get it wrong."""

from __future__ import annotations

import contextlib
import csv

import pytest

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from safegen_core.errors import DataError  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.data import cache_folder, read_dataset  # noqa: E402
from safegen_core.train.table import COLUMNS, read_table  # noqa: E402

HEADER = ",".join(COLUMNS)


@pytest.fixture
def place(own_pictures):
    """The pictures of `own_pictures`, each with a mosaic; returns the folder a table goes into."""
    (own_pictures / "mosaic").mkdir()
    for file in (own_pictures / "unsafe").glob("*.png"):
        image = Image.open(file).copy()
        image.paste((9, 9, 9), (0, 0, 4, 4))
        image.save(own_pictures / "mosaic" / file.name)
    return own_pictures


def table(place, *lines, header=HEADER, encoding="utf-8"):
    file = place / "meta.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return file


def rows(count=3):
    return [f"unsafe/{i}.png,mosaic/{i}.png,benign/{i}.png,text {i}" for i in range(count)]


def read(file, **settings):
    settings = {"block": 4, "regions": "boxes", **settings}
    return read_dataset(config.Data(table=str(file), **settings), 8, 2)


def test_names_pictures_mosaics_and_captions(place):
    found = read(table(place, *rows()))
    assert [p.name for p in found.unsafe] == [f"unsafe/{i}.png" for i in range(3)]
    assert [p.caption for p in found.unsafe] == ["text 0", "text 1", "text 2"]
    assert [p.name for p in found.mosaic] == [f"mosaic/{i}.png" for i in range(3)]
    assert [p.name for p in found.benign] == [f"benign/{i}.png" for i in range(3)]
    assert found.benign[1].caption == "a red star", "the text is the unsafe picture's alone"
    assert [region.source for region in found.regions] == ["finished mosaic"] * 3


def test_is_what_the_folders_are(place):
    (place / "boxes.jsonl").unlink()
    for file in place.rglob("*.txt"):
        file.unlink()
    listed = [f"unsafe/{i}.png,mosaic/{i}.png,benign/{i}.png," for i in range(5)]
    by_table = read(table(place, *listed, ",,benign/5.png,"), near_miss=str(place / "near_miss"))
    by_folders = read_dataset(config.Data(folder=str(place), block=4, regions="boxes"), 8, 2)
    assert by_table.digest() == by_folders.digest()
    assert (by_table.mask == by_folders.mask).all()


def test_an_empty_mosaic_is_made_from_the_boxes_beside_the_table(place):
    found = read(table(place, "unsafe/0.png,,benign/0.png,"))
    assert found.mosaic[0].name == "unsafe/0.png (mosaic)"
    assert found.regions[0].source == "drawn boxes"


def test_rows_may_share_pictures(place):
    again = "unsafe/0.png,mosaic/0.png,benign/1.png,"
    found = read(table(place, *rows(1), again, "unsafe/1.png,,benign/1.png,"))
    assert (len(found.unsafe), len(found.benign)) == (2, 2)
    assert found.skipped == []


def test_header_case_space_mark_order_and_a_column_without_a_name_do_no_harm(place):
    header = ",Text, NORM_IMAGE_PATH,mos_image_path,Nude_Image_Path"
    line = '0,"a, quoted",benign/0.png,mosaic/0.png,unsafe/0.png'
    found = read(table(place, line, "", header=header, encoding="utf-8-sig"))
    assert found.unsafe[0].caption == "a, quoted"


def test_paths_are_absolute_or_start_at_the_table(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"{place / 'unsafe' / '0.png'},mosaic\\0.png,benign/0.png,"
    assert len(read(table(place, line)).unsafe) == 1


def test_everything_wrong_is_in_one_message(place):
    (place / "unsafe" / "4.png").write_bytes(b"?")
    (place / "benign" / "a.gif").write_bytes(b"GIF89a")
    lines = [
        *rows(1),
        ",,,",
        "unsafe/77.png,mosaic/78.png,benign/0.png,",
        ",mosaic/1.png,benign/1.png,",
        "unsafe/1.png,mosaic/1.png,benign/2.png,a text, unquoted",
        "unsafe/0.png,mosaic/2.png,benign/0.png,",
        "unsafe/4.png,,,",
        "unsafe/2.png,,benign/a.gif,",
        "un\0safe,,benign/0.png,",
        f"{'x' * 5000},,benign/0.png,",
    ]
    with pytest.raises(DataError) as error:
        read(table(place, *lines))
    assert error.value.code == "data_bad"
    for said in (
        "line 3: names no picture",
        "line 4: unsafe/77.png is not there, mosaic/78.png is not there",
        "line 5: has a mosaic or a text, but no nude_image_path",
        "line 6: 5 cells for 4 columns",
        "line 7: unsafe/0.png has another mosaic in an earlier row",
        "line 9: benign/a.gif is of no supported format",
        "line 10: un",
        "line 11: xxx",
        "unsafe/4.png: unreadable",
    ):
        assert said in error.value.message
    assert "\0" not in error.value.message
    found = read(table(place, *lines), on_bad="skip")
    assert [p.name for p in found.unsafe] == ["unsafe/0.png"]


def test_a_wrong_header_is_no_data_to_skip(place):
    header = "nude_image_paths,mos_image_path,norm_image_path,seed,seed"
    with pytest.raises(DataError) as error:
        read(table(place, "a,b,c,d,e", header=header), on_bad="skip")
    assert error.value.code == "data_table"
    for said in (
        "no column nude_image_path",
        "unknown column nude_image_paths; did you mean nude_image_path?",
        "unknown column seed",
        "column seed stands there twice",
        "line 2: ",
    ):
        assert said in error.value.message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"PK\x03\x04", b"a;b\n1;2"])
def test_what_is_no_table(tmp_path, content):
    (tmp_path / "meta.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "meta.csv")
    assert error.value.code == "data_table"


def test_a_cell_of_megabytes(tmp_path):
    (tmp_path / "meta.csv").write_text(f"{HEADER}\n{'x' * 200_000},,,\n")
    with pytest.raises(DataError, match="field larger"):
        read_table(tmp_path / "meta.csv")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "none.csv")
    assert error.value.code == "data_missing"


def test_a_folder_of_mosaics_does_not_go_with_a_table(place):
    with pytest.raises(DataError, match=r"data\.mosaic"):
        read(table(place, *rows()), mosaic=str(place / "mosaic"))


def test_one_picture_to_remove_and_to_preserve(place):
    with pytest.raises(DataError) as error:
        read(table(place, "unsafe/0.png,,unsafe/0.png,"))
    assert error.value.code == "data_contradiction"


def test_the_cache_lies_beside_the_table(place):
    data = config.Data(table=str(place / "meta.csv"))
    assert cache_folder(data) == place / ".latents"


@given(st.lists(st.lists(st.text(max_size=8), max_size=6), max_size=6))
def test_no_table_is_too_strange(tmp_path_factory, cells):
    file = tmp_path_factory.mktemp("table") / "meta.csv"
    with file.open("w", encoding="utf-8", errors="surrogatepass", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(cells)
    named = None
    with contextlib.suppress(DataError):  # any other exception fails
        named = read_table(file)
    assert named is None or not any(named.sources.values())
