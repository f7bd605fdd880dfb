# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do when the memory is not enough: said in words, with what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import SafeGenError
from ..header import printable
from .cards import MARGIN, Card, choose
from .config import Config

# How the backends word it; only CUDA has an exception of its own.
_SAID = (
    "out of memory",  # CUDA, MPS, XPU
    "defaultcpuallocator",
    "not enough memory",
    "cannot allocate memory",
    "alloc_failed",  # cuBLAS, cuDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that memory is full."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


@contextmanager
def explained(config: Config, family: str, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a message that says what fits.

    Args:
        config: what was tried.
        family: name of the base's family.
        device: where it is computed.

    Raises:
        SafeGenError: `train_memory`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SafeGenError("train_memory", _told(config, family, device, error)) from error


def free_bytes(device: torch.device) -> int | None:
    """Memory a new run would find on the device, in bytes; None where nobody can tell."""
    if device.type == "cuda":
        try:
            free, _ = torch.cuda.mem_get_info(device)
        except RuntimeError:  # CUDA does not answer any more after some failures
            return None
        return free + torch.cuda.memory_reserved(device)  # ours, gone when this run is
    if device.type != "cpu":
        return None
    try:
        import psutil  # comes with accelerate
    except ImportError:
        return None
    return psutil.virtual_memory().available


def _told(config: Config, family: str, device: torch.device, error: BaseException) -> str:
    free = free_bytes(device)
    room = "" if free is None else f" {_gigabytes(free)} would be free for a new run."
    return (
        f"Out of memory on {device} with {_tried(config)}.{room} "
        f"{_fitting(config, family, device, free)}{_sparing(config, device)} "
        f"({printable(error, 200)})"
    )


def _tried(config: Config) -> str:
    compute, batch = config.compute, config.schedule.batch
    size = config.data.resolution
    return ", ".join(
        [
            f"{min(compute.at_once or batch, batch)} pairs in one pass",
            f"pictures of {size} x {size}" if size else "pictures of the base's own size",
            f"precision {compute.precision}",
            f"checkpointing {'on' if compute.checkpointing else 'off'}",
            f"Adam in {compute.adam}",
        ]
    )


def _fitting(config: Config, family: str, device: torch.device, free: int | None) -> str:
    """The card preset that fits into what is free and is not the one that was tried."""
    if device.type != "cuda" or free is None:
        return ""
    card = choose(family, free)
    if card is not None and _is_in_use(card, config):  # it promises more than it holds
        card = choose(family, card.wants(family) + MARGIN - 1)
    if card is None:
        return "No card preset fits into that. "
    return f"The preset for that much is --card {card}. "


def _is_in_use(card: Card, config: Config) -> bool:
    values = config.to_values()
    return all(
        values[group][key] == value
        for group, keys in card.values.items()
        for key, value in keys.items()
    )


def _sparing(config: Config, device: torch.device) -> str:
    """The settings that are still to be had; those that a resumed run may change come first."""
    compute, batch, cuda = config.compute, config.schedule.batch, device.type == "cuda"
    again = {
        "--compute.at_once 1": min(compute.at_once or batch, batch) > 1,
        "--compute.checkpointing (about 30 % slower)": not compute.checkpointing,
        "--compute.storage fp8": cuda and compute.storage == "same",
    }
    anew = {
        "--delta.rank 32": config.delta.rank == 0,
        "--compute.adam 8bit": cuda and compute.adam == "fp32",
        "a smaller --data.resolution": True,
    }
    first, then = (", ".join(key for key, had in all_.items() if had) for all_ in (again, anew))
    return (f"Less is needed with {first}, on --resume too; " if first else "") + (
        f"in a new run with {then}."
    )


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
