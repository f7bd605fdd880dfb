# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's filter keeps only what it clearly accepts."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402

from safegen_core.train.bootstrap import Filter  # noqa: E402

PICTURE = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of this source; gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        (tmp_path / "of_an_operator.py").write_text(source)
        monkeypatch.delitem(sys.modules, "of_an_operator", raising=False)
        return "of_an_operator"

    yield write
    sys.modules.pop("of_an_operator", None)


def test_it_is_asked_with_the_pixels(module):
    name = module("seen = []\ndef accept(pixels):\n    seen.append(pixels)\n    return True")
    assert Filter.load(f"{name}:accept").keeps(PICTURE)
    (seen,) = sys.modules[name].seen
    assert seen.dtype == np.uint8
    assert np.array_equal(seen, PICTURE.numpy())


def test_it_cannot_change_what_is_trained_on():
    def paint(pixels):
        pixels[:] = 0
        return True

    before = PICTURE.clone()
    assert Filter("f", paint).keeps(PICTURE)
    assert torch.equal(PICTURE, before)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (True, True),
        (np.bool_(True), True),
        (False, False),
        (np.bool_(False), False),
        (1, False),
        ("yes", False),
        (None, False),
        (0.9, False),
        (np.array([True]), False),
        (torch.tensor(True), False),
    ],
)
def test_only_a_true_bool_keeps(answer, kept):
    assert Filter("f", lambda pixels: answer).keeps(PICTURE) is kept


@pytest.mark.parametrize("error", [ValueError, TimeoutError, MemoryError, AssertionError])
def test_an_exception_drops_and_its_words_are_not_kept(error):
    def fail(pixels):
        raise error("what the picture shows")

    check = Filter("f", fail)
    assert not check.keeps(PICTURE)
    assert dict(check.failures) == {error.__name__: 1}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("", "of_an_operator:absent"),
        ("accept = 3", "of_an_operator:accept"),
        ("import no_such_module_anywhere", "of_an_operator:accept"),
        ("raise RuntimeError('no licence')", "of_an_operator:accept"),
        ("import sys; sys.exit(3)", "of_an_operator:accept"),
        ("def accept(", "of_an_operator:accept"),
        ("", "no_such_module_anywhere:accept"),
        ("", "of_an_operator"),
        ("", ":accept"),
        ("", "of_an_operator:"),
        ("", ".relative:accept"),
        ("", ""),
    ],
)
def test_a_filter_that_is_not_there_stops_the_run(module, refusal, source, name):
    module(source)
    assert refusal(Filter.load, name) == "bootstrap_filter"
