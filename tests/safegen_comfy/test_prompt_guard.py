# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard in the place of a CLIP's model; real text encoders are in tests/hosts/comfyui."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.sanitize.toy import Toy, toy_bank

BAD, GOOD = "a zorb person by the sea", "a tree person by the sea"
NEVER = "a zorb child by the sea"


class Model:
    """A text encoder whose answer is the text itself."""

    layer = "last"

    def encode_token_weights(self, tokens):
        return tokens, None


class Clip:
    """As much of ComfyUI's CLIP as a guard meets."""

    def __init__(self, model):
        self.cond_stage_model, self.tokenizer = model, object()

    def clone(self):
        return copy.copy(self)

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens):
        return self.cond_stage_model.encode_token_weights(tokens)[0]


@pytest.fixture(scope="module")
def known(pack):
    return pack("safegen_core.sanitize.profile").fit_profile(Toy(), toy_bank())


@pytest.fixture
def guard(pack, folders, known, monkeypatch):
    """`safegen_comfy.prompt_guard` with an encoder that reads texts; `.sent` is what went out."""
    sent = []
    server = SimpleNamespace(client_id="me", send_sync=lambda *event: sent.append(event))
    stand_ins = {
        "comfy": {"__path__": []},
        "comfy.utils": {},
        "comfy.model_management": {},
        "nodes": {"NODE_CLASS_MAPPINGS": {}},
        "server": {"PromptServer": SimpleNamespace(instance=server)},
        "comfy_execution": {"__path__": []},
        "comfy_execution.utils": {"get_executing_context": lambda: None},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    module = pack("safegen_comfy.prompt_guard")
    errors = pack("safegen_core.errors")

    class Encoder(Toy):
        def __init__(self, model, tokenizer):
            super().__init__()
            if not isinstance(model, Model):
                raise errors.SanitizeError("sanitize_encoder", type(model).__name__)

        def read(self, tokens, cond, pooled):
            chunks = self.chunks(tokens)
            return SimpleNamespace(chunks=chunks, encodings=self.encode(chunks), text=tokens)

        def assembled(self, chunks, encodings, reading, given):
            return " ".join(word.text for chunk in chunks for word in chunk), *given[1:]

    monkeypatch.setattr(module, "ComfyEncoder", Encoder)
    monkeypatch.setattr(module.profiles, "find", lambda encoder, encodings: known)
    module.sent, module.server = sent, server
    return module


@pytest.fixture
def dial(guard):
    return guard.PRESETS["default"]


def test_what_passes_is_what_the_model_answered_the_very_object(guard, dial):
    answer = ("a tree", None)
    model = Model()
    model.encode_token_weights = lambda tokens: answer
    assert guard.Guard(model, None, dial).encode_token_weights("a tree") is answer


def test_a_flagged_prompt_is_assembled_anew(guard, dial):
    own = guard.Guard(Model(), None, dial)
    cleaned, _ = own.encode_token_weights(BAD)
    assert "zorb" not in cleaned
    assert own.explanation.verdict == "cleaned"


def test_a_refusal_is_raised_with_its_code_in_the_sentence(guard, dial, refused):
    own = guard.Guard(Model(), None, dial)
    assert refused(own.encode_token_weights, NEVER) == "sanitize_minors"
    with pytest.raises(Exception, match=r"\[sanitize_minors\]$"):
        own.encode_token_weights(NEVER)


@pytest.mark.parametrize("error", [RuntimeError("anything"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["find", "encode", "score"])
def test_whatever_goes_wrong_nothing_is_handed_on(guard, dial, monkeypatch, where, error):
    def broken(*_):
        raise error

    if where == "find":
        monkeypatch.setattr(guard.profiles, "find", broken)
    elif where == "encode":
        monkeypatch.setattr(guard.ComfyEncoder, "read", broken)
    else:
        monkeypatch.setattr(guard.Sanitizer, "__call__", broken)
    with pytest.raises(type(error)):
        guard.Guard(Model(), None, dial).encode_token_weights(GOOD)


def test_a_spared_prompt_is_not_even_read(guard, dial, monkeypatch):
    monkeypatch.setattr(guard, "ComfyEncoder", None)
    own = guard.Guard(Model(), None, dial, spared=lambda: True)
    assert own.encode_token_weights(NEVER) == (NEVER, None)
    assert own.explanation is None


def test_everything_but_the_encoding_is_the_models_own(guard, dial):
    model = Model()
    own = guard.Guard(model, None, dial)
    assert own.layer == "last"
    assert not hasattr(own, "memory_estimation_function")
    assert copy.copy(own).model is model
    assert copy.deepcopy(own).layer == "last"


def test_a_clip_is_copied_and_a_guard_is_replaced(guard, dial):
    clip = Clip(Model())
    once = guard.guarded(clip, dial)
    twice = guard.guarded(once.clone(), guard.PRESETS["strict"])
    assert isinstance(clip.cond_stage_model, Model)
    assert twice.cond_stage_model.model is clip.cond_stage_model
    assert twice.cond_stage_model.dial == guard.PRESETS["strict"]
    assert once.cond_stage_model.dial == dial


def test_a_clip_of_another_kind_is_refused_at_once(guard, dial, refused):
    flux = Clip(SimpleNamespace(encode_token_weights=lambda tokens: (tokens, None)))
    assert refused(guard.guarded, flux, dial) == "sanitize_encoder"
    assert refused(guard.explained, flux, GOOD, dial) == "sanitize_encoder"


def test_a_prompt_is_explained_whatever_would_become_of_it(guard, dial):
    clip = guard.guarded(Clip(Model()), dial)
    told = [guard.explained(clip, text, dial) for text in (GOOD, BAD, NEVER)]
    assert [one.verdict for one in told] == ["pass", "cleaned", "refused"]
    assert told[2].code == "sanitize_minors"


def test_only_the_browser_that_queued_a_prompt_is_told_of_it(guard, dial):
    clip = guard.guarded(Clip(Model()), dial, "7")
    clip.encode_from_tokens(BAD)
    ((event, told, client),) = guard.sent
    assert (event, told["node"], client) == ("safegen.prompt", "7", "me")
    assert told["prompt"]["verdict"] == "cleaned"
    guard.server.client_id = None  # an API user without a socket: everybody would be told
    clip.encode_from_tokens(BAD)
    assert len(guard.sent) == 1


def test_the_numbers_count_for_custom_only(guard):
    assert guard.dial_of("strict", 0.9, 2.0) == guard.PRESETS["strict"]
    assert guard.dial_of("custom", 0.9, 2.0) == guard.Dial(0.9, 2.0)
    assert guard.CHOICES == ["gentle", "default", "strict", "custom"]
