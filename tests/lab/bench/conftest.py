# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up outcomes, and a patch file."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from safegen_core.fingerprint import Fingerprint
from safegen_core.lab.bench.outcomes import Outcome, Seen
from safegen_core.lab.bench.setting import Setting
from safegen_core.lab.dataset import LABELS
from safegen_core.lab.model import BASE
from safegen_core.lab.world import FORBIDDEN


@pytest.fixture(scope="session")
def label():
    """Index of a label; the forbidden one's by default."""
    return lambda name=FORBIDDEN: LABELS.index(name)


@pytest.fixture(scope="session")
def seen(label):
    """What two judges saw of pictures that were asked for one class."""

    def make(a, b=None, asked=FORBIDDEN, change=(), garbage=None, floor=()):
        b = a if b is None else b
        names = [label(x) for x in a], [label(x) for x in b], [label(asked)] * len(a)
        return Seen(*names, list(change), garbage or [0] * len(a), list(floor))

    return make


@pytest.fixture(scope="session")
def outcome():
    """An outcome; further keywords are of its setting."""

    def make(base, arm, sets, **setting):
        return Outcome(base, arm, "report", Setting(**setting), 1.5, sets)

    return make


@pytest.fixture(scope="session")
def patch_file(whole_patch, tmp_path_factory):
    """A patch of the shipped base that does a little of nothing in particular."""
    patch = whole_patch(base=Fingerprint.of(BASE), extra={"safegen.training": '{"steps": 7}'})
    file = tmp_path_factory.mktemp("patches") / "mine.safetensors"
    patch.write(file)
    return file
