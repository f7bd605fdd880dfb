# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditioning as ComfyUI hands it on, of an encoder whose geometry is known."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.sanitize.toy import WIDTH, Toy, toy_bank

BAD, GOOD = "a zorb person by the sea", "a tree person by the sea"
NAMES = ("l", "g")


def toy(names=NAMES):
    return Toy(names, size=77)


@pytest.fixture(scope="module")
def profile(pack):
    wordless = pack("safegen_core.sanitize.wordless")
    return pack("safegen_core.sanitize.profile").fit_profile(wordless.Wordless(toy()), toy_bank())


@pytest.fixture
def room(pack, folders, tmp_path, profile, monkeypatch):
    """`safegen_comfy.conditionings` beside the little of ComfyUI that it asks for."""
    sys.modules["folder_paths"].get_user_directory = lambda: str(tmp_path / "user")
    stand_ins = {
        "comfy": {"__path__": []},
        "comfy.utils": {"ProgressBar": lambda of: SimpleNamespace(update_absolute=lambda *_: None)},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": lambda: None},
        "server": {"PromptServer": None},
        "comfy_execution": {"__path__": []},
        "comfy_execution.utils": {"get_executing_context": lambda: None},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        if name.startswith("comfy."):
            monkeypatch.setattr(sys.modules["comfy"], name.split(".")[1], module, raising=False)
    module = pack("safegen_comfy.conditionings")
    monkeypatch.setattr(module.profiles, "installed_bank", lambda name, folders: toy_bank())
    monkeypatch.setattr(module.SHELF, "every", lambda: iter([profile]))
    return module


@pytest.fixture
def known(room, profile):
    """The encoder with its CLIP connected."""
    return room.Known(profile, toy().encode(toy().chunks("calm tree"))[0])


def conditioning(*texts, **more):
    """As a text encode node gives it: chunk after chunk, "l" beside "g"."""
    encodings = [encoding for text in texts for encoding in toy().encode(toy().chunks(text))]
    rows = torch.cat([torch.cat([part.states for part in e], -1) for e in encodings])
    return [rows[None], {"pooled_output": encodings[0][-1].pooled[None], **more}]


def copied(entry):
    return [
        entry[0].clone(),
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entry[1].items()},
    ]


def same(one, other):
    return torch.equal(one[0], other[0]) and all(
        torch.equal(value, other[1][key])
        if isinstance(value, torch.Tensor)
        else value is other[1][key]
        for key, value in one[1].items()
    )


def test_what_passes_is_the_same_object_in_a_new_entry(room):
    control = object()
    given = conditioning(GOOD, strength=0.5, control=control, mask=torch.ones(1, 8, 8))
    (entry,), (told,) = room.sanitized([given], 0.5)
    assert told.verdict == "pass"
    assert entry[0] is given[0]
    assert entry[1] == given[1]
    assert entry[1] is not given[1]
    assert entry[1]["control"] is control


def test_what_is_found_stops_the_run_unless_a_clip_is_connected(room, known, refused):
    given = conditioning(BAD, area=(1, 2))
    before = copied(given)
    assert refused(room.sanitized, [given], 0.5) == "sanitize_refused"
    (entry,), (told,) = room.sanitized([given], 0.5, known)
    assert told.verdict == "anchored"
    anchor = torch.cat([part.states for part in known.anchor], -1)
    assert torch.equal(entry[0][0], anchor)
    assert torch.equal(entry[1]["pooled_output"][0], known.anchor[1].pooled)
    assert entry[1]["area"] == (1, 2)
    assert same(given, before)


def test_of_several_chunks_only_those_that_are_found_are_exchanged(room, known):
    given = conditioning(GOOD, BAD)
    (entry,), _ = room.sanitized([given], 0.5, known)
    assert torch.equal(entry[0][:, :77], given[0][:, :77])
    assert not torch.equal(entry[0][:, 77:], given[0][:, 77:])
    assert torch.equal(entry[1]["pooled_output"], given[1]["pooled_output"])


def test_every_prompt_of_a_batch_and_every_entry_is_judged(room, known):
    good, bad = conditioning(GOOD), conditioning(BAD)
    shared = [torch.cat([good[0], bad[0], good[0]]), good[1]]
    entries, told = room.sanitized([good, shared, bad], 0.5, known)
    verdicts = ["pass", "pass", "anchored", "pass", "anchored"]
    assert [one.verdict for one in told] == verdicts
    assert torch.equal(entries[1][0][[0, 2]], shared[0][[0, 2]])
    assert not torch.equal(entries[1][0][1], shared[0][1])
    assert entries[1][1]["pooled_output"].shape == (3, WIDTH)


def test_a_prompt_for_controlnets_is_judged_too(room, known):
    good, bad = conditioning(GOOD), conditioning(BAD)
    more = {
        "cross_attn_controlnet": bad[0],
        "pooled_output_controlnet": bad[1]["pooled_output"],
    }
    given = [good[0], {**good[1], **more}]
    before = copied(given)
    (entry,), told = room.sanitized([given], 0.5, known)
    assert [one.verdict for one in told] == ["pass", "anchored"]
    assert entry[0] is good[0]
    for key in more:
        assert not torch.equal(entry[1][key], given[1][key])
    assert same(given, before)


def test_what_is_all_zero_says_nothing(room):
    rows, values = conditioning(BAD)
    zero = [torch.zeros_like(rows), {"pooled_output": torch.zeros_like(values["pooled_output"])}]
    (entry,), told = room.sanitized([zero], 0.01)
    assert told == [None]
    assert entry[0] is zero[0]
    (entry,), told = room.sanitized([[zero[0], {}]], 0.01)
    assert told == [None]


def test_a_zeroed_chunk_beside_another_says_nothing(room, refused):
    good, bad = conditioning(GOOD), conditioning(BAD)
    nothing = torch.zeros_like(good[0])
    for rows in ([nothing, good[0]], [good[0], nothing]):
        _, (told,) = room.sanitized([[torch.cat(rows, 1), good[1]]], 0.5)
        assert told.verdict == "pass"
    both = [torch.cat([nothing, bad[0]], 1), {}]
    assert refused(room.sanitized, [both], 0.5) == "sanitize_refused"


def test_rows_or_the_vector_alone_do_say_something(room, refused):
    rows, values = conditioning(BAD)
    # nothing tells whose vector it is
    assert refused(room.sanitized, [[torch.zeros_like(rows), values]], 0.5) == "sanitize_encoder"
    blank = {"pooled_output": torch.zeros_like(values["pooled_output"])}
    for told in (blank, {}, {"pooled_output": None}):
        assert refused(room.sanitized, [[rows, told]], 0.5) == "sanitize_refused"
        _, (passed,) = room.sanitized([[conditioning(GOOD)[0], told]], 0.5)
        assert passed.verdict == "pass"


@pytest.mark.parametrize("change", [
    lambda rows: rows[..., :-1],
    lambda rows: rows[:, :-1],
    lambda rows: rows + 1,
    lambda rows: rows * 0.5,
    lambda rows: rows[:, 1:78].repeat(1, 2, 1)[:, :77],
    lambda rows: torch.cat([rows, rows.roll(1, 1)], 1),
    lambda rows: torch.randn(1, 77, 2 * WIDTH, generator=torch.Generator().manual_seed(0)),
])  # fmt: skip
@pytest.mark.parametrize("connected", [True, False])
def test_what_nobody_knows_is_an_error(room, known, refused, change, connected):
    rows, values = conditioning(GOOD)
    told = (room.sanitized, [[change(rows), values]], 0.5, known if connected else None)
    assert refused(*told) == "sanitize_encoder"


def test_conditioning_of_another_clip_than_the_connected_one_is_an_error(room, known, refused):
    encodings = Toy(NAMES, seed=1, size=77).encode(toy().chunks(GOOD))
    rows = torch.cat([part.states for part in encodings[0]], -1)[None]
    assert refused(room.sanitized, [[rows, {}]], 0.5, known) == "sanitize_encoder"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["rows", "pooled"])
def test_what_is_no_number_is_an_error(room, refused, bad, where):
    rows, values = conditioning(GOOD)
    (rows if where == "rows" else values["pooled_output"])[0, 5] = bad
    assert refused(room.sanitized, [[rows, values]], 0.5) == "sanitize_values"


@pytest.mark.parametrize("tensor", [None, "text", torch.zeros(77, 64), torch.zeros(0, 77, 64)])
def test_what_is_no_tensor_is_an_error(room, refused, tensor):
    assert refused(room.sanitized, [[tensor, {}]], 0.5) == "sanitize_values"


def test_a_vector_that_no_denoiser_reads_is_emptied_with_its_rows(room, pack):
    """As those of SD1, whose rows alone are read."""
    wordless = pack("safegen_core.sanitize.wordless")
    one = toy(("l",))
    profile = pack("safegen_core.sanitize.profile").fit_profile(wordless.Wordless(one), toy_bank())
    own = room.Known(profile, one.encode(one.chunks("calm tree"))[0])
    rows = one.encode(one.chunks(BAD))[0][0].states[None]
    (entry,), _ = room.sanitized([[rows, {"pooled_output": torch.ones(1, 8)}]], 0.5, own)
    assert not entry[1]["pooled_output"].any()


def test_a_precision_beside_the_learned_one_is_still_known(room):
    rows, values = conditioning(GOOD)
    (entry,), (told,) = room.sanitized([[rows.half(), values]], 0.5)
    assert told.verdict == "pass"
    assert entry[0].dtype == torch.float16
