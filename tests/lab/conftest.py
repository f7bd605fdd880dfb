# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped miniature, loaded once; and a patch trained on it, once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def detectors():
    pytest.importorskip("safetensors")
    from safegen_core.lab.detectors import load_detectors

    return load_detectors()


@pytest.fixture(scope="session")
def pipeline():
    pytest.importorskip("diffusers")
    from safegen_core.lab.model import load_pipeline

    return load_pipeline()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A default patch, trained as `safegen demo` does it."""
    pytest.importorskip("diffusers")
    from safegen_core.lab.demo import TRAINING_STEPS
    from safegen_core.lab.patches import train_patch, write_pictures

    folder = tmp_path_factory.mktemp("lab")
    write_pictures(folder / "pictures")
    return train_patch(
        "default", folder / "pictures", folder / "run", schedule__steps=TRAINING_STEPS
    )
