# SPDX-License-Identifier: GPL-3.0-or-later
"""Files are written whole or not at all, and other libraries read them."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from safegen_core.atomic import atomic_path, atomic_save_safetensors, check_output
from safegen_core.errors import FileError
from safegen_core.header import DTYPES
from safegen_core.storage import Weights

SAVE = atomic_save_safetensors


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_survives_and_the_library_agrees(tmp_path, name):
    from safetensors.torch import load_file

    values = torch.arange(24).reshape(2, 3, 4) % 2
    tensors = {
        "a": values.to(DTYPES[name]),
        "empty": torch.empty(0, 3, dtype=DTYPES[name]),
        "scalar": torch.tensor(1).to(DTYPES[name]),
    }
    SAVE(tensors, tmp_path / "m.safetensors", {"k": "vä"})
    ours = Weights(tmp_path / "m.safetensors")
    assert ours.metadata == {"k": "vä"}
    theirs = load_file(tmp_path / "m.safetensors")
    for key, tensor in tensors.items():
        loaded = ours.load(key)
        assert loaded.dtype == theirs[key].dtype == tensor.dtype
        assert torch.equal(loaded.float(), tensor.float())
        assert torch.equal(theirs[key].float(), tensor.float())


def test_atomic_path_leaves_all_or_nothing(tmp_path):
    target = tmp_path / "new" / "out.bin"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_bytes(b"1")
        assert not target.exists()
    assert target.read_bytes() == b"1"
    with pytest.raises(ZeroDivisionError), atomic_path(target, overwrite=True) as temporary:  # noqa: PT012
        temporary.write_bytes(b"2")
        raise ZeroDivisionError
    assert [p.name for p in target.parent.iterdir()] == ["out.bin"]
    assert target.read_bytes() == b"1"
    with pytest.raises(FileError) as caught, atomic_path(target):
        pass
    assert caught.value.code == "file_exists"
    with atomic_path(target, overwrite=True) as temporary:
        temporary.write_bytes(b"3")
    assert target.read_bytes() == b"3"


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, "file_disk_full"), (errno.EACCES, "file_unwritable")]
)
def test_a_failing_disk_is_named_and_leaves_nothing(tmp_path, number, expected):
    with pytest.raises(FileError) as caught, atomic_path(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == expected
    assert list(tmp_path.iterdir()) == []


def test_saving_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(FileError) as caught:
        SAVE({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "m", {})
    assert caught.value.code == "file_dtype"
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_those_of_an_ordinary_file(tmp_path, monkeypatch):
    (tmp_path / "plain").touch()
    # The process's umask belongs to all its threads, so it is not touched, not even to look at it.
    monkeypatch.delattr(os, "umask")
    SAVE({"a": torch.zeros(1)}, tmp_path / "m", {})
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_the_output(tmp_path, refusal, overwrite):
    (tmp_path / "in").touch()
    os.link(tmp_path / "in", tmp_path / "twin")  # as IN is on a disk that does not tell case apart
    check_output(tmp_path / "out", tmp_path / "in", overwrite=overwrite)
    check_output(tmp_path / "out", tmp_path / "missing", overwrite=overwrite)
    for same in (tmp_path / "in", tmp_path / "new" / ".." / "in", tmp_path / "twin"):
        inputs = (tmp_path / "other", tmp_path / "in")
        assert refusal(check_output, same, *inputs, overwrite=overwrite) == "file_exists"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "y/" * 2500, "file/below"])
def test_a_name_no_file_can_have_is_refused_first(tmp_path, refusal, name):
    (tmp_path / "file").touch()

    def write():
        with atomic_path(tmp_path / name):
            raise AssertionError("too late")

    assert refusal(write) == "file_unwritable"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_long_names_of_wide_letters_can_be_written(tmp_path):
    SAVE({"a": torch.zeros(1)}, tmp_path / ("\N{SNOWMAN}" * 80), {})
    SAVE({"a": torch.zeros(1)}, tmp_path / ("\N{GRINNING FACE}" * 62), {})
