# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings for every test; toy patches and models of the miniature family.

Fixtures that make things return the function that makes one.
"""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported

# Tests never assert a time, and a busy machine must not fail a property.
# A fixture that only makes things may serve all examples of one.
settings.register_profile(
    "safegen", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("safegen")


@pytest.fixture(autouse=True)
def empty_ledger(tmp_path_factory):
    """No test reads or writes the ledger of whoever runs it, or of another test; gives its path."""
    path = tmp_path_factory.getbasetemp() / "ledgers" / uuid.uuid4().hex / "ledger.json"
    # Not the fixture `monkeypatch`, which a test may undo half-way.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGEN_LEDGER", str(path))
        yield path


@pytest.fixture(scope="session")
def refusal():
    """The code of the SafeGenError that a call raises."""
    from safegen_core.errors import SafeGenError

    def code_of(call, *args, **kwargs):
        with pytest.raises(SafeGenError) as caught:
            call(*args, **kwargs)
        return caught.value.code

    return code_of


@pytest.fixture(scope="session")
def save():
    """Write a state dict as a model file; gives its path."""
    from safegen_core.atomic import atomic_save_safetensors

    def write(path, state, metadata=None):
        atomic_save_safetensors(state, path, {"format": "pt"} if metadata is None else metadata)
        return path

    return write


@pytest.fixture(scope="session")
def fingerprint():
    """A made-up base of the lab family, from a seed."""
    import torch

    from safegen_core.families import FAMILIES
    from safegen_core.fingerprint import Fingerprint, sketch_positions

    samples = sum(at.numel() for at in sketch_positions(FAMILIES["lab"]).values())

    def make(seed=0):
        values = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
        return Fingerprint("lab", f"{seed:064x}", values)

    return make


@pytest.fixture(scope="session")
def whole_patch(fingerprint):
    """A patch of random whole deltas, from a seed; further keywords as `Patch.new`."""
    import torch

    from safegen_core.delta import Full
    from safegen_core.families import FAMILIES
    from safegen_core.patch import Patch

    lab = FAMILIES["lab"]
    shapes = {s.name: s.shape for s in lab.tensors()}

    def make(seed=0, names=None, **facts):
        random = torch.Generator().manual_seed(seed)
        deltas = {n: Full(1e-3 * torch.randn(shapes[n], generator=random)) for n in names or shapes}
        return Patch.new(lab, deltas, **{"base": fingerprint(), **facts})

    return make


@pytest.fixture(scope="session")
def low_patch(fingerprint):
    """A patch of random low-rank deltas, from a seed; further keywords as `Patch.new`."""
    import torch

    from safegen_core.delta import LowRank
    from safegen_core.families import FAMILIES
    from safegen_core.patch import Patch

    lab = FAMILIES["lab"]

    def make(seed=0, rank=4, **facts):
        random = torch.Generator().manual_seed(seed)
        deltas = {
            n: LowRank(
                torch.randn(lab.specs[n].shape[0], rank, generator=random) * 0.02,
                torch.randn(rank, lab.specs[n].shape[1], generator=random) * 0.02,
                2.0 * rank,
            )
            for n in lab.weight_names()
        }
        return Patch.new(lab, deltas, **{"base": fingerprint(), **facts})

    return make


@pytest.fixture(scope="session")
def lab_state():
    """The tensors of a miniature checkpoint, not only of its UNet, from a seed."""
    import torch

    from safegen_core.families import FAMILIES

    lab = FAMILIES["lab"]

    def make(seed=0, dtype=torch.float32, layout="ldm", prefix="model.diffusion_model."):
        random = torch.Generator().manual_seed(seed)
        ldm = layout == "ldm"
        state = {}
        for module in lab.modules:
            path = prefix + (module.ldm if ldm else module.diffusers).removesuffix("1")
            state[f"{path}2.to_k.weight"] = torch.full((module.width, lab.context), 0.5)
        names = ("input_blocks.1.0.in_layers.2", "out.2") if ldm else (
            "down_blocks.0.resnets.0.conv1", "conv_out")  # fmt: skip
        for name in names:
            state[f"{prefix}{name}.weight"] = torch.full((4, 4, 3, 3), 0.25)
        for spec in lab.tensors():
            values = 0.05 * torch.randn(spec.shape, generator=random)
            state[prefix + (spec.ldm if ldm else spec.name)] = values
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        if ldm:
            state["cond_stage_model.position_ids"] = torch.arange(77)
            state["first_stage_model.decoder.conv_in.weight"] = torch.randn(
                4, 4, generator=random
            ).double()
        return dict(sorted(state.items()))

    return make


@pytest.fixture(scope="session")
def moved():
    """The same model with its self-attention changed a little, in its own dtype."""
    import torch

    def make(state, seed=1, size=1e-3):
        random = torch.Generator().manual_seed(seed)
        return {
            n: (t.float() + size * torch.randn(t.shape, generator=random)).to(t.dtype)
            if ".attn1." in n
            else t
            for n, t in state.items()
        }

    return make


@pytest.fixture(scope="session")
def patch_for():
    """A random patch made for a model; further keywords as `Patch.new`."""
    import torch

    from safegen_core.delta import Full
    from safegen_core.families import FAMILIES
    from safegen_core.fingerprint import Fingerprint
    from safegen_core.patch import Patch

    lab = FAMILIES["lab"]

    def make(state, seed=1, size=1e-3, **facts):
        random = torch.Generator().manual_seed(seed)
        deltas = {
            s.name: Full(size * torch.randn(s.shape, generator=random)) for s in lab.tensors()
        }
        return Patch.new(lab, deltas, **{"base": Fingerprint.of(state), **facts})

    return make
