# SPDX-License-Identifier: GPL-3.0-or-later
"""CLIP's tokenizer from the table of open-clip-torch, which is looked into and never imported."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from hypothesis import given
from hypothesis import strategies as st

from safegen_core.errors import SafeGenError
from safegen_core.train.base import vocabulary

END = {"model_max_length": 77, "pad_token": vocabulary.END}
BANG = {"model_max_length": 77, "pad_token": "!"}

with_table = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open-clip-torch is not installed"
)


@pytest.fixture(scope="module")
def clip():
    return vocabulary.clip_tokenizer(END)


@with_table
def test_ids_are_clips_own(clip):
    assert len(clip) == vocabulary.SIZE == 49408
    assert (clip.bos_token_id, clip.eos_token_id) == (49406, 49407)
    assert clip.convert_tokens_to_ids(["!", "a</w>", "the</w>"]) == [0, 320, 518]
    ids = clip("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip("A  Photo\nof a CAT").input_ids == ids


@with_table
@pytest.mark.parametrize(("settings", "pad"), [(END, 49407), (BANG, 0)])
def test_padding_is_what_the_settings_say(settings, pad):
    words = vocabulary.clip_tokenizer(settings | {"tokenizer_class": "CLIPTokenizer"})
    ids = words("a photo", padding="max_length", truncation=True).input_ids
    assert ids[:4] == [49406, 320, 1125, 49407]
    assert ids[4:] == [pad] * 73
    assert len(words("a photo " * 100, truncation=True).input_ids) == 77


@pytest.fixture(scope="module")
def theirs():
    """open_clip's own tokenizer, from its file: the package would import torchvision."""
    pytest.importorskip("ftfy")
    pytest.importorskip("regex")
    file = vocabulary.table().with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@with_table
@given(st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 ,.-'()éü", max_size=60))
def test_words_are_split_as_open_clip_splits_them(clip, theirs, text):
    assert clip(text).input_ids[1:-1] == theirs.encode(text)


@with_table
def test_the_package_is_not_imported(clip):
    assert "open_clip" not in sys.modules


def refused() -> str:
    with pytest.raises(SafeGenError) as error:
        vocabulary.clip_tokenizer(END)
    assert error.value.code == "file_tokenizer"
    return error.value.message


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert "python -m pip install --no-deps open-clip-torch" in refused()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        # without the time, or the tests' names differ between processes
        gzip.compress(b"#version\na b\nc d\n", mtime=0),
        gzip.compress(b"#version\n" + b"a b c\n" * 50_000, mtime=0),
        gzip.compress(b"\xff\xfe" * 100, mtime=0),
        gzip.compress(b"#version\n" + b"a b\n" * 50_000, mtime=0)[:-20],
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, monkeypatch, content):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").touch()
    (tmp_path / "open_clip" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    refused()
