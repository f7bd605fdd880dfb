# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch on the model that is about to sample: exactly the one that was asked for, or none.

Models are loaded, switched and refilled in the middle of a request (refiner, hires checkpoint,
override settings, several checkpoints in memory) without any script being told. So nothing is
assumed: before every sampling, and after every switch, the weights themselves are looked at.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from safegen_core.delta import LowRank
from safegen_core.errors import PatchError, SafeGenError
from safegen_core.fingerprint import SelfAttention
from safegen_core.fit import Fit, already_applied, require_fit
from safegen_core.header import printable
from safegen_core.patch import Patch
from safegen_core.place import command
from safegen_core.trust import Trust, choice
from safegen_core.trust.installed import Loaded

from . import jobs, merging, patcher, patches, side_path
from .protection import AUTO, OFF, REQUIRED, Protection

BAKED = "baked in"
NOT_ADDED = "strength 0"

_LASTING = ("patch_none", "patch_untested")
"""What stays so until a file, the ledger or the weights change; finding out may read patches."""


class Way(Protocol):
    """How a patch is put on one model: `merging`, `side_path` or `patcher`."""

    route: str

    def attention(self) -> SelfAttention:
        """The model's self-attention, without our patch and without LoRAs."""
        ...

    def put(self, loaded: Loaded, strength: float) -> None:
        """Put a patch on, in place of the one before; if anything is wrong, that one stays."""
        ...

    def remove(self) -> None:
        """Give the model back as it was, bit for bit."""
        ...

    def forget(self) -> None:
        """Take the model for what it is now: other weights were loaded into it."""
        ...

    def holds(self) -> bool:
        """Whether the weights are still as `put` or `remove` left them."""
        ...

    def holds_at(self, step: int) -> bool:
        """The same, so cheaply that it can be asked at every step."""
        ...

    @property
    def ram(self) -> int:
        """Bytes of memory taken beside the patch itself."""
        ...

    @property
    def vram(self) -> int:
        """Bytes of the device's memory taken."""
        ...


@dataclass(frozen=True)
class Put:
    """A patch on a model: plain values, for infotext and status.

    Attributes:
        name: of the patch, as the menus show it.
        id: its SHA-256.
        strength: what is on the model, whatever was asked for.
        family: title of the model's family.
        match: how near the model is to the patch's base: "green", "amber".
        distance: relative distance to it.
        trust: what the choice rests on; "untested" is none.
        reason: the same as a phrase.
        route: how it is on: the `route` of a `Way`, `BAKED`, or `NOT_ADDED`.
        ram: bytes of memory it takes: what undoing needs, and the patch itself.
        vram: bytes of the device's memory.
    """

    name: str
    id: str
    strength: float
    family: str
    match: str | None
    distance: float | None
    trust: str
    reason: str
    route: str
    ram: int
    vram: int

    @property
    def is_on(self) -> bool:
        """Whether the model differs from one without the patch."""
        return self.route != NOT_ADDED


@dataclass
class _Record:
    """What was last done to one model."""

    way: Way
    asked: tuple | None = None  # the patch and strength asked for, and the state of the files
    done: tuple[str, float] | None = None  # id and strength of the patch that was put on
    loaded: Loaded | None = None  # kept so that it is not read again
    put: Put | None = None
    refused: SafeGenError | None = None


_lock = threading.RLock()
_records: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()


def ensure(sd_model: Any, protection: Protection) -> Put | None:
    """Make a model carry exactly the patch that a protection asks for, and verify it.

    What is on already is left alone; another patch is replaced, never added to. The result is
    entered in the current job.

    Args:
        sd_model: `shared.sd_model`.
        protection: in force.

    Returns:
        What is on the model; None if nothing was asked for, or if under "auto" no patch can be
        chosen: then the job gets a note that says why, and names ways to one.

    Raises:
        SafeGenError: under "required", or for a patch that was asked for by name: `patch_none`,
            `patch_untested`, `patch_family`, `patch_coverage`, `patch_base`, `patch_already`,
            `patch_lost`, `patch_replaced`, `patch_changed`, `patch_host`, `file_missing`, and what
            reading the file and telling the model's family raise.
    """
    with _lock, _exactly():
        try:
            put = _ensured(sd_model, protection)
        except SafeGenError as error:
            _tell(sd_model, None)
            if protection.must_patch:
                raise
            if (job := jobs.current()) is not None:
                job.note(error.message)
            return None
        _tell(sd_model, put)
        return put


def verify(sd_model: Any) -> bool:
    """Whether a model is as `ensure` left it; True for one that it never saw."""
    with _lock, _exactly():
        record = _records.get(sd_model)
        return record is None or record.way.holds()


def holds_at(sd_model: Any, step: int) -> bool:
    """As `verify`, so cheaply that it can be asked at every step."""
    record = _records.get(sd_model)
    return record is None or record.way.holds_at(step)


def forget(sd_model: Any) -> None:
    """Know nothing of a model any more, whose weights came anew from a file."""
    with _lock:
        record = _records.pop(sd_model, None)
        if record is not None:
            record.way.forget()


def remove(sd_model: Any) -> None:
    """Give a model back as it was before any patch of ours, bit for bit.

    Raises:
        PatchError: `patch_changed` when something else has changed what was patched.
    """
    with _lock, _exactly():
        record = _records.get(sd_model)
        if record is not None:
            record.way.remove()
            del _records[sd_model]


def remove_all() -> None:
    """As `remove`, for every model in memory; one that cannot be given back is left as it is."""
    with _lock:
        for model in _living():
            with contextlib.suppress(SafeGenError):
                remove(model)


def status() -> list[dict[str, Any]]:
    """Every model in memory that was looked at: its checkpoint, whether it holds, and its `Put`."""
    with _lock:
        return [_told(model, _records[model]) for model in _living()]


def _told(sd_model: Any, record: _Record) -> dict[str, Any]:
    put = _measured(record)
    return {
        "checkpoint": checkpoint(sd_model),
        "patch": None if put is None else asdict(put),
        "refused": None if record.refused is None else record.refused.message,
        "holds": verify(sd_model),
    }


def _living() -> list[Any]:
    """Models that were looked at; those that the host has thrown away are dropped."""
    for model in list(_records):
        if _is_thrown_away(model):
            del _records[model]
    return list(_records)


def _is_thrown_away(sd_model: Any) -> bool:
    if not isinstance(sd_model, torch.nn.Module):
        return False
    try:
        return next((tensor.is_meta for tensor in sd_model.parameters()), False)
    except (AttributeError, TypeError):  # reForge empties what it throws away
        return True


def checkpoint(sd_model: Any) -> str:
    """What people call a loaded model: the file it came from."""
    known = getattr(sd_model, "sd_checkpoint_info", None)
    return str(getattr(known, "name_for_extra", None) or getattr(known, "title", "unknown"))


def _ensured(sd_model: Any, protection: Protection) -> Put | None:
    record = _records.get(sd_model)
    if protection.patch == OFF:
        if record is not None:
            remove(sd_model)
        return None
    if _is_replaced():
        raise PatchError(
            "patch_replaced",
            "A replaced UNet (TensorRT or the like) is active, which no patch can reach: set "
            "'SD Unet' to None, or switch SafeGen's patch off.",
        )
    asked = (protection.patch, protection.strength, patches.state())
    if record is not None and record.asked == asked and record.way.holds():
        if record.refused is not None:
            raise record.refused
        return _measured(record)
    record = _record(sd_model)
    record.asked = record.refused = None
    try:
        _put(record, protection)
    except SafeGenError as error:
        record.put = record.done = record.loaded = None
        record.way.remove()  # what was asked for before is not what is asked for now
        if error.code in _LASTING:
            record.asked, record.refused = asked, error
        raise
    record.asked = asked
    return _measured(record)


def _record(sd_model: Any) -> _Record:
    """The model's record, by the way that suits its weights as they are now stored."""
    record, way = _records.get(sd_model), _way(sd_model)
    if record is None:
        _living()
        record = _records[sd_model] = _Record(way)
    elif type(record.way) is not type(way):
        record.way.remove()
        record.way, record.done = way, None
    return record


def _put(record: _Record, protection: Protection) -> None:
    is_as_left = record.way.holds()  # asked first: looking at other weights takes them as they are
    attention = record.way.attention()
    loaded, trust = _chosen(protection, attention)
    fit = _fitting(attention, loaded)
    strength = protection.strength
    done = (loaded.patch.id(), strength)
    if already_applied(fit, strength):
        record.way.remove()
        route, record.done = BAKED, None
        strength = round(fit.carried.amount, 2) if fit.carried else strength
    elif strength == 0:
        record.way.remove()
        route, record.done = NOT_ADDED, None
    else:
        if record.done != done or not is_as_left:
            record.way.put(loaded, strength)
            if not record.way.holds():
                raise PatchError(
                    "patch_changed",
                    f"The patch {printable(loaded.name)} was put on the model and is not there: "
                    "something undoes it. Switch other extensions that change weights off.",
                )
        route, record.done = record.way.route, done
    record.loaded = loaded
    record.put = Put(
        loaded.name,
        loaded.patch.id(),
        strength,
        attention.detected.family.title,
        fit.match,
        fit.distance,
        trust.level,
        trust.reason,
        route,
        0,
        0,
    )


def _chosen(protection: Protection, attention: SelfAttention) -> tuple[Loaded, Trust]:
    if protection.patch in (AUTO, REQUIRED):
        return choice.choose(
            attention, patches.names, patches.find, patches.ledger(), patches.ways()
        )
    loaded = patches.load(protection.patch)
    return loaded, choice.trust_of(loaded, attention, patches.ledger())


def _fitting(attention: SelfAttention, loaded: Loaded) -> Fit:
    try:
        return require_fit(attention, loaded.patch)
    except PatchError as error:
        if error.code != "patch_base":
            raise
        bake = command("bake", "--help")
        raise PatchError(
            "patch_base",
            f"The patch {printable(loaded.name)} was not made for this model or a relative of it, "
            "or does not say for which: it may damage the model and protect nothing. Choose "
            f"another, or bake it in at your own risk: {bake}",
        ) from error


def _measured(record: _Record) -> Put | None:
    """What is on the model, with the memory that it takes by now."""
    put = record.put
    if put is None or record.loaded is None or not put.is_on or put.route == BAKED:
        return put
    ram = record.way.ram + _size(record.loaded.patch)
    return replace(put, ram=ram, vram=record.way.vram)


def _size(patch: Patch) -> int:
    """Bytes of a patch in memory."""
    tensors = [
        tensor
        for delta in patch.deltas.values()
        for tensor in ((delta.up, delta.down) if isinstance(delta, LowRank) else (delta.tensor,))
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _way(sd_model: Any) -> Way:
    """How a patch goes on this model.

    Raises:
        PatchError: `patch_host` when it can in no way.
    """
    if patcher.is_one(sd_model):
        unet = sd_model.forge_objects_original.unet
        if side_path.is_needed(unet.model) and not patcher.works_online(unet):
            return side_path.SidePath(unet.model, _tensors(sd_model))
        return patcher.Patcher(sd_model)
    unet = getattr(getattr(sd_model, "model", None), "diffusion_model", None)
    if not isinstance(unet, torch.nn.Module):
        raise PatchError(
            "patch_host",
            "SafeGen does not know how this host keeps a model's weights, so no patch can go on "
            "it. The image check works without.",
        )
    if side_path.is_needed(unet) or not merging.is_known(unet):
        return side_path.SidePath(unet, lambda: merging.without_loras(unet))
    return merging.Merging(unet)


def _tensors(sd_model: Any) -> Callable[[], dict[str, Tensor]]:
    held = weakref.ref(sd_model)  # a record must not keep alive what it is kept for
    return lambda: patcher.base_tensors(held())


def _is_replaced() -> bool:
    try:
        from modules import sd_unet
    except ImportError:
        return False
    return getattr(sd_unet, "current_unet", None) is not None


def _tell(sd_model: Any, put: Put | None) -> None:
    job = jobs.current()
    if job is not None:
        job.patch[checkpoint(sd_model)] = None if put is None else asdict(put)


@contextlib.contextmanager
def _exactly() -> Iterator[None]:
    """Deltas are formed in float32 on the CPU, whatever the host computes in at the moment."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield
