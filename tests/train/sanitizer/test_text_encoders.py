# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import shutil

import pytest
import torch

pytest.importorskip("diffusers")

from safegen_core.sanitize.encoder import Role, Word
from safegen_core.train import config
from safegen_core.train.base import BaseModel
from safegen_core.train.sanitizer import text_encoders
from safegen_core.train.sanitizer.text_encoders import TextEncoders

TEXTS = ["", "a red star", "a blue circle a red star a striped star"]
CPU = torch.device("cpu")


def encoded(encoder: TextEncoders):
    return encoder.encode([encoder.chunks(text)[0] for text in TEXTS])


@pytest.fixture(scope="module")
def two_encoders(xl_folder, tmp_path_factory):
    """The tiny SDXL with the same words for both encoders, as the real one has them."""
    folder = shutil.copytree(xl_folder, tmp_path_factory.mktemp("two") / "xl")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (folder / "tokenizer" / name).is_file():
            shutil.copy(folder / "tokenizer" / name, folder / "tokenizer_2" / name)
    return folder


@pytest.mark.parametrize("folder", ["base_folder", "two_encoders"])
def test_rows_are_those_that_the_denoiser_is_told(request, folder: str) -> None:
    path = request.getfixturevalue(folder)
    encoder = TextEncoders(path)
    told = BaseModel(config.Base(path=str(path))).encode(TEXTS, CPU)
    for text, encoding in zip(TEXTS, encoded(encoder), strict=True):
        states = torch.cat([part.states for part in encoding], -1)
        if text or folder == "base_folder":  # SDXL's empty prompt is told as zeros
            assert torch.allclose(states, told.hidden[told.rows[text]], atol=1e-5)
        pooled = encoding[-1].pooled
        assert (pooled is None) == (told.pooled is None)
        if text and pooled is not None and told.pooled is not None:
            assert torch.allclose(pooled, told.pooled[told.rows[text]], atol=1e-5)
    names = ("l", "g") if folder == "two_encoders" else ("l",)
    assert tuple(part.name for part in encoder.encode([()])[0]) == names


def test_words_have_their_rows_and_the_rest_its_roles(base_folder) -> None:
    encoder = TextEncoders(base_folder)
    (chunk,) = encoder.chunks("a red star")
    assert [word.text for word in chunk] == ["a", "red", "star"]
    (part,) = encoder.encode([chunk])[0]
    tokens = [n for n, word in enumerate(chunk) for _ in word.tokens]
    assert part.words.tolist() == [-1, *tokens, *[-1] * (len(part.words) - 1 - len(tokens))]
    assert part.roles[0] == Role.START
    assert part.roles[len(tokens) + 1] == Role.END


def test_what_does_not_fit_is_cut_off(base_folder) -> None:
    encoder = TextEncoders(base_folder)
    long = tuple(Word(str(n), tokens=(5, 6, 7)) for n in range(4))
    (part,) = encoder.encode([long])[0]
    assert part.words.tolist() == [-1, 0, 0, 0, 1, 1, 1, -1]
    assert part.roles[-1] == Role.END


def test_a_single_file_gives_the_same_rows(
    base_folder, sd1_file, tmp_path, monkeypatch, refusal
) -> None:
    assert refusal(TextEncoders, sd1_file) == "file_missing"  # no configs of the tiny family
    shutil.copytree(base_folder, tmp_path / "lab")
    monkeypatch.setattr(text_encoders, "SHIPPED", tmp_path)
    for (one,), (other,) in zip(
        *(encoded(TextEncoders(path)) for path in (base_folder, sd1_file)), strict=True
    ):
        assert torch.equal(one.states, other.states)


def test_no_model(tmp_path, refusal) -> None:
    assert refusal(TextEncoders, tmp_path / "none") == "file_missing"
    assert refusal(TextEncoders, tmp_path) == "file_missing"
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert refusal(TextEncoders, tmp_path / "x.safetensors").startswith("file_")
