# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of their own: what lies in one folder may lie anywhere."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from safegen_core.errors import DataError
from safegen_core.train import config
from safegen_core.train.data import cache_folder, read_dataset


def read(**settings):
    settings = {key: str(value) for key, value in settings.items()}
    return read_dataset(config.Data(block=4, regions="boxes", **settings), 8, 2)


@pytest.fixture
def apart(own_pictures, tmp_path):
    """The pictures with every role in a folder of another name and place."""
    folders = {}
    for role, name in (("unsafe", "a/bad"), ("benign", "b/good"), ("near_miss", "c/near")):
        folders[role] = tmp_path / name
        folders[role].parent.mkdir()
        (own_pictures / role).rename(folders[role])
    (own_pictures / "boxes.jsonl").rename(folders["unsafe"] / "boxes.jsonl")
    return folders


def test_the_same_pictures_as_in_one_folder(pictures, apart):
    found, one = read(**apart), read(folder=pictures)
    assert found.digest() == one.digest()
    assert (found.mask == one.mask).all()
    assert found.unsafe[0].name == "bad/0.png"
    assert found.benign[1].caption == "a red star"


def test_boxes_lie_in_the_folder_or_beside_it_and_name_it_or_not(apart):
    inside = apart["unsafe"] / "boxes.jsonl"
    text = inside.read_text()
    wanted = read(**apart).digest()
    for written in (text.replace("unsafe/", "bad/"), text.replace("unsafe/", "")):
        inside.write_text(written)
        assert read(**apart).digest() == wanted
    inside.rename(apart["unsafe"].parent / "boxes.jsonl")
    assert read(**apart).digest() == wanted


def test_folders_of_one_name_are_called_by_their_roles(apart, tmp_path):
    same = {}
    for role, folder in apart.items():
        same[role] = folder.parent / "pictures"
        folder.rename(same[role])
    (same["benign"] / "x.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"benign/x\.gif"):
        read(**same)


def test_a_role_of_its_own_replaces_the_one_in_the_folder(own_pictures, tmp_path):
    other = tmp_path / "others"
    (own_pictures / "benign").rename(other)
    found = read(folder=own_pictures, benign=other)
    assert [p.name for p in found.benign][:2] == ["others/0.png", "others/1.png"]


def test_a_folder_that_is_named_must_be_there(apart, tmp_path):
    for role in apart:
        with pytest.raises(DataError, match=f"data.{role}") as error:
            read(**{**apart, role: tmp_path / "none"})
        assert error.value.code == "data_missing"


def test_nothing_named_is_not_the_working_folder(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    with pytest.raises(DataError) as error:
        read()
    assert error.value.code == "data_missing"


def test_without_benign_pictures(apart):
    del apart["benign"], apart["near_miss"]
    with pytest.raises(DataError) as error:
        read(**apart)
    assert error.value.code == "data_empty"


def test_the_cache_lies_beside_the_pictures_unless_it_is_named(tmp_path):
    assert cache_folder(config.Data(folder="d")).parts == ("d", ".latents")
    assert cache_folder(config.Data(unsafe=str(tmp_path / "u"))) == tmp_path / ".latents"
    assert cache_folder(config.Data(unsafe="u", cache=str(tmp_path))) == tmp_path
