# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's own text encoders, made small, as the sanitizer sees them; no server."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.hosts.comfyui.sources import ROOT, SOURCES

NAME = "custom_nodes_x_safegen_text"
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
OPTIONS = {
    "clip_l_model_config": {**SIZES, "hidden_size": 64},
    "clip_h_model_config": {**SIZES, "hidden_size": 72},
    "clip_g_model_config": {**SIZES, "hidden_size": 80},
}
KINDS = {
    "sd1": ("comfy.sd1_clip", "SD1ClipModel", "comfy.sd1_clip", "SD1Tokenizer"),
    "sd2": ("comfy.text_encoders.sd2_clip", "SD2ClipModel", None, "SD2Tokenizer"),
    "sdxl": ("comfy.sdxl_clip", "SDXLClipModel", None, "SDXLTokenizer"),
    "refiner": ("comfy.sdxl_clip", "SDXLRefinerClipModel", None, "SDXLTokenizer"),
}


@pytest.fixture(scope="module", params=SOURCES[-1:])
def comfy(request):
    """ComfyUI's modules, in this process: one version of it."""
    from tests.hosts.comfyui.launch import without_cuda

    sys.path.append(str(request.param))
    if not torch.cuda.is_available():
        without_cuda()
    importlib.import_module("comfy.cli_args").args.cpu = True
    yield importlib.import_module
    sys.path.remove(str(request.param))


@pytest.fixture(scope="module")
def text_encoder(comfy):
    """`safegen_comfy.text_encoder` inside a package of another name, as ComfyUI has it."""
    for name, folder in ((NAME, ROOT), (f"{NAME}.safegen_comfy", ROOT / "safegen_comfy")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return importlib.import_module(f"{NAME}.safegen_comfy.text_encoder")


@pytest.fixture(scope="module")
def made(comfy):
    """Models and tokenizers by kind, made once: `made("sdxl")`."""
    known = {}

    def make(kind):
        if kind not in known:
            module, model, words, tokenizer = KINDS[kind]
            torch.manual_seed(0)
            net = getattr(comfy(module), model)(dtype=torch.float32, model_options=OPTIONS)
            for weight in net.parameters():
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
                else:
                    torch.nn.init.normal_(weight, 1.0, 0.1)
            known[kind] = net, getattr(comfy(words or module), tokenizer)()
        return known[kind]

    return make


@pytest.fixture
def read(text_encoder, made):
    """Encode as ComfyUI does, and read it: gives (encoder, reading, given, tokens)."""

    def reading(kind, text, change=lambda tokens: tokens):
        model, tokenizer = made(kind)
        encoder = text_encoder.ComfyEncoder(model, tokenizer)
        tokens = tokenizer.tokenize_with_weights(text)
        tokens = change({name: tokens[name] for name in encoder._models})
        with torch.inference_mode():
            given = model.encode_token_weights(tokens)
            return encoder, encoder.read(tokens, *given[:2]), given, tokens

    return reading


def rows_of(given):
    return given[0][0]


TEXTS = [
    "",
    "a striped star at night",
    "a (striped:1.3) star, (at:0.05) (night:-1.5)",
    "<|endoftext|> a star <|startoftext|> <|endoftext|>",
    "star " * 74 + "unbelievable!!!",
    "star, " * 50 + "(a boat:0.5)",
    "wow!!!! 星 ☆ naïve",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("kind", KINDS)
def test_what_comfyui_encoded_is_read_as_if_there_were_no_emphasis(read, made, kind, text):
    encoder, reading, given, _ = read(kind, text)
    with torch.inference_mode():
        again = encoder.encode(reading.chunks)
        back = encoder.assembled(reading.chunks, again, reading, given)
    assert len(again) == rows_of(given).shape[0] // 77
    for k, (mine, theirs) in enumerate(zip(again, reading.encodings, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            assert a.name == b.name
            torch.testing.assert_close(a.states, b.states, atol=1e-4, rtol=1e-4)
            assert torch.equal(a.roles, b.roles)
            assert torch.equal(a.words, b.words)
            if k == 0 and a.pooled is not None:
                torch.testing.assert_close(a.pooled, b.pooled, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(back[0], given[0], atol=1e-4, rtol=1e-4)
    assert (back[0].dtype, back[1].shape) == (given[0].dtype, given[1].shape)


def test_emphasis_is_put_on_again(read):
    text = "a (striped:1.3) star, (night:-1.5)"
    encoder, reading, given, _ = read("sdxl", text)
    with torch.inference_mode():
        plain = torch.cat([part.states for part in reading.encodings[0]], -1)
        assert not torch.allclose(plain, rows_of(given), atol=1e-2)
        again = encoder.encode(reading.chunks)
        back = encoder.assembled(reading.chunks, again, reading, given)
    torch.testing.assert_close(back[0], given[0], atol=1e-4, rtol=1e-4)


def test_a_harmless_prompt_costs_no_forward(read, made):
    encoder, reading, *_ = read("sd1", "a plain star")
    model, tokenizer = made("sd1")
    tokens = tokenizer.tokenize_with_weights("a plain star")
    with torch.inference_mode():
        given = model.encode_token_weights(tokens)
    encoder._forward = None  # any forward would call it
    read_again = encoder.read(tokens, *given)
    assert torch.equal(read_again.encodings[0][0].states, rows_of(given))
    assert read_again.text == reading.text == "a plain star"


def test_a_chunk_nobody_changed_keeps_its_rows_bit_for_bit(read):
    encoder, reading, given, _ = read("sdxl", "(star:1.2), " * 40)
    first = reading.encodings[0]
    with torch.inference_mode():
        (other,) = encoder.encode([reading.chunks[1][:2]])
        back = encoder.assembled(
            [reading.chunks[0], reading.chunks[1][:2]], [first, other], reading, given
        )
    assert torch.equal(back[0][:, :77], given[0][:, :77])
    assert not torch.equal(back[0][:, 77:], given[0][:, 77:])
    assert torch.equal(back[1], given[1])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_changed_prompt_hands_on_no_old_pooled_vector(read, kind):
    encoder, reading, given, _ = read(kind, "a striped star")
    with torch.inference_mode():
        (other,) = encoder.encode([reading.chunks[0][:1]])
        back = encoder.assembled([reading.chunks[0][:1]], [other], reading, given)
    assert back[1].shape == given[1].shape
    assert not torch.allclose(back[1], given[1])


def test_a_typed_end_token_hides_nothing(read):
    _, reading, *_ = read("sdxl", "a star <|endoftext|> striped")
    words = [word.text for word in reading.chunks[0]]
    assert words == ["a", "star", "<|endoftext|>", "striped"]
    for part in reading.encodings[0]:
        assert part.roles[:7].tolist() == [0, 1, 1, 1, 1, 2, 3]
    assert "striped" in reading.text


def test_a_word_cut_by_the_end_of_a_chunk_is_whole_in_the_text(read):
    _, reading, _, _ = read("sd1", "star " * 74 + "unbelievable" * 3)
    assert len(reading.chunks) == 2
    assert "unbelievableunbelievableunbelievable" in reading.text


def test_two_texts_of_sdxl_are_words_of_one_encoder_each(read, made):
    _, tokenizer = made("sdxl")

    def change(tokens):
        return {**tokens, "l": tokenizer.tokenize_with_weights("a (plain:1.5) cat")["l"]}

    encoder, reading, given, _ = read("sdxl", "striped star", change)
    assert [(w.text, w.weight, set(w.tokens)) for w in reading.chunks[0]] == [
        ("a", 1, {"l"}), ("plain", 1.5, {"l"}), ("cat", 1, {"l"}),
        ("striped", 1, {"g"}), ("star", 1, {"g"}),
    ]  # fmt: skip
    one, other = reading.encodings[0]
    assert one.words[:5].tolist() == [-1, 0, 1, 2, -1]
    assert other.words[:4].tolist() == [-1, 3, 4, -1]
    assert reading.text == "a plain cat\nstriped star"
    with torch.inference_mode():
        back = encoder.assembled(reading.chunks, encoder.encode(reading.chunks), reading, given)
    torch.testing.assert_close(back[0], given[0], atol=1e-4, rtol=1e-4)


def test_what_one_encoder_alone_was_told_beyond_the_other_is_cut_as_comfyui_cuts_it(read, made):
    _, tokenizer = made("sdxl")

    def change(tokens):
        return {**tokens, "l": tokenizer.tokenize_with_weights("star " * 100)["l"]}

    _, reading, given, _ = read("sdxl", "striped star", change)
    assert len(reading.chunks) == len(reading.encodings) == 1
    assert rows_of(given).shape[0] == 77


def test_textual_inversions_are_words(read):
    random = torch.Generator().manual_seed(0)

    def change(tokens):
        start, *rest = tokens["l"][0]
        vectors = [(torch.randn(64, generator=random), 1.2) for _ in range(3)]
        return {"l": [[start, *vectors, *rest][:77]]}

    encoder, reading, given, _ = read("sd1", "a star", change)
    assert [(w.text, w.weight) for w in reading.chunks[0]] == [
        ("embedding", 1.2), ("a", 1), ("star", 1)
    ]  # fmt: skip
    assert reading.encodings[0][0].words[:7].tolist() == [-1, 0, 0, 0, 1, 2, -1]
    with torch.inference_mode():
        back = encoder.assembled(reading.chunks, encoder.encode(reading.chunks), reading, given)
    torch.testing.assert_close(back[0], given[0], atol=1e-4, rtol=1e-4)


def test_a_textual_inversion_of_another_width_is_left_out_as_comfyui_leaves_it_out(read):
    def change(tokens):
        start, *rest = tokens["l"][0]
        return {"l": [[start, (torch.zeros(80), 1.0), *rest][:77]]}

    encoder, reading, *_ = read("sd1", "a star", change)
    assert reading.encodings[0][0].words[:4].tolist() == [-1, 1, 2, -1]
    with torch.inference_mode():
        (again,) = encoder.encode(reading.chunks)
    torch.testing.assert_close(again[0].states, reading.encodings[0][0].states)


def test_a_replacement_that_is_longer_pushes_the_last_words_out(read):
    encoder, reading, *_ = read("sdxl", "star " * 75)
    (chunk,) = reading.chunks
    with torch.inference_mode():
        (encoding,) = encoder.encode([(chunk[0], *chunk)])
    for part in encoding:
        assert part.states.shape[0] == 77
        assert part.words.max() == 74
        assert part.roles[-1] == 2


def test_the_mark_tells_layers_and_weights_apart_and_no_prompts(read, made, text_encoder):
    model, _ = made("sd1")
    marks = [(e := read("sd1", text))[0].mark(e[1].encodings) for text in ("a star", "a (b:1.1)")]
    assert marks[0] == marks[1]
    model.set_clip_options({"layer": -2})
    skipped = (e := read("sd1", "a star"))[0].mark(e[1].encodings)
    model.reset_clip_options()
    weight = model.clip_l.transformer.text_model.encoder.layers[1].mlp.fc1.weight
    weight.data[0] += 0.5
    changed = (e := read("sd1", "a star"))[0].mark(e[1].encodings)
    weight.data[0] -= 0.5
    assert len({marks[0], skipped, changed}) == 3


class TestRefused:
    def code(self, text_encoder, call):
        errors = importlib.import_module(f"{NAME}.safegen_core.errors")
        with pytest.raises(errors.SanitizeError) as caught:
            call()
        return caught.value

    def test_text_encoders_of_other_models_are_refused_by_name(self, text_encoder):
        class FluxClipModel:
            clip_l = None

        error = self.code(
            text_encoder, lambda: text_encoder.ComfyEncoder(FluxClipModel(), SimpleNamespace())
        )
        assert error.code == "sanitize_encoder"
        assert "FluxClipModel" in error.message
        assert "Check Image" in error.message

    @pytest.mark.parametrize(
        "change",
        [
            lambda pairs: pairs[1:],
            lambda pairs: pairs[:76],
            lambda pairs: [(5, 1.0)] * 77,
            lambda pairs: [*pairs[:3], *[(5, 1.0)] * 74],
        ],
        ids=["no start", "short", "neither", "no end"],
    )
    def test_tokens_nobody_can_read_are_refused(self, read, made, text_encoder, change):
        encoder, _, given, tokens = read("sd1", "a star")
        broken = {"l": [change(tokens["l"][0])]}
        error = self.code(text_encoder, lambda: encoder.read(broken, *given))
        assert error.code == "sanitize_encoder"

    @pytest.mark.parametrize("tokens", [{}, {"l": []}, {"g": [[]]}])
    def test_tokens_that_are_not_there_are_refused(self, read, text_encoder, tokens):
        encoder, _, given, _ = read("sd1", "a star")
        error = self.code(text_encoder, lambda: encoder.read(tokens, *given))
        assert error.code == "sanitize_encoder"

    def test_an_answer_of_another_shape_is_refused(self, read, text_encoder):
        encoder, _, given, tokens = read("sd1", "a star")
        for cond in (given[0][:, :76], given[0][..., :63], given[0].repeat(2, 1, 1)):
            error = self.code(text_encoder, lambda cond=cond: encoder.read(tokens, cond, None))
            assert error.code == "sanitize_encoder"
