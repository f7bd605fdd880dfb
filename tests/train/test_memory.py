# SPDX-License-Identifier: GPL-3.0-or-later
"""Out of memory: told in words, whatever it was that said so; everything else passes as it is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.train import from_values, memory  # noqa: E402
from safegen_core.train.cards import cards  # noqa: E402

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FULL = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("CUDA error: out of memory"),
]


def config(**overrides):
    values = {"base": {"path": "base"}, "data": {"folder": "data"}, "run": {"out": "out"}}
    return from_values(values, overrides)


def told(error, family="sd1", device=CPU, **overrides) -> str:
    with (
        pytest.raises(SafeGenError) as caught,
        memory.explained(config(**overrides), family, device),
    ):
        raise error
    assert caught.value.code == "train_memory"
    assert caught.value.__cause__ is error
    return caught.value.message


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(free, ours)`: as if there were a GPU with so many bytes free, and so many held by us."""

    def make(free: int, ours: int = 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: ours)

    return make


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:12] or "MemoryError")
def test_full_memory_is_explained(error):
    assert "Out of memory" in told(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("out of memory"), OSError()],
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, memory.explained(config(), "sd1", CPU):
        raise error
    assert caught.value is error


def test_real_full_memory_of_the_cpu():
    with pytest.raises(SafeGenError) as caught, memory.explained(config(), "sd1", CPU):
        torch.empty(2**60)
    assert caught.value.code == "train_memory"


def test_what_was_tried_is_told():
    message = told(
        MemoryError(),
        **{"schedule.batch": 6, "compute.at_once": 3, "compute.checkpointing": True},
        **{"data.resolution": 768, "compute.precision": "bf16"},
    )
    assert "3 pairs" in message
    assert "768 x 768" in message
    assert "bf16" in message
    assert "checkpointing on" in message


def test_what_is_in_use_is_not_recommended():
    spare = told(MemoryError(), **{"schedule.batch": 4, "delta.rank": 0})
    for setting in ("compute.at_once 1", "compute.checkpointing", "delta.rank 32"):
        assert setting in spare
    sparing = {"compute.at_once": 1, "compute.checkpointing": True, "delta.rank": 8}
    for setting in ("compute.at_once", "compute.checkpointing", "delta.rank"):
        assert setting not in told(MemoryError(), **sparing)


def test_only_a_gpu_has_presets_8_bit_adam_and_fp8(gpu):
    gpu(2**40)
    for words in ("--card", "8bit", "fp8"):
        assert words not in told(MemoryError())
        assert words in told(MemoryError(), device=CUDA)


def test_free_memory_counts_what_this_run_gives_back(gpu):
    gpu(3 * 2**30, ours=5 * 2**30)
    assert memory.free_bytes(CUDA) == 8 * 2**30
    assert "8.0 GiB" in told(FULL[0], device=CUDA)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_preset_fits_and_is_not_the_one_in_use(gpu, family):
    """Whatever is free: a preset that is told of needs no more, and differs from what failed."""
    known = {card.name: card for card in cards() if family in card.families}
    assert known
    for card in known.values():
        gpu(card.wants(family) + memory.MARGIN)
        if card.values["compute"].get("at_once"):  # else it is what was tried
            assert f"--card {card.name}." in told(FULL[0], family, CUDA)
        in_use = {
            f"{group}.{key}": value
            for group, keys in card.values.items()
            for key, value in keys.items()
        }
        message = told(FULL[0], family, CUDA, **in_use)
        assert f"--card {card.name}." not in message
        for name, other in known.items():
            if f"--card {name}." in message:
                assert other.wants(family) < card.wants(family)


def test_too_little_for_any_preset_and_unknown_families(gpu):
    gpu(2**20)
    assert "No card preset fits" in told(FULL[0], device=CUDA)
    gpu(2**40)
    assert "No card preset fits" in told(FULL[0], "lab", CUDA)


def test_a_gpu_that_does_not_answer_any_more_is_no_second_error(monkeypatch):
    def dead(device):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", dead)
    assert "Out of memory" in told(FULL[0], device=CUDA)


def test_a_hostile_message_is_cut_and_printable():
    message = told(RuntimeError("out of memory \x1b[2J" + "x" * 10_000))
    assert "\x1b" not in message
    assert len(message) < 1500
