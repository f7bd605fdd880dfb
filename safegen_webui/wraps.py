# SPDX-License-Identifier: GPL-3.0-or-later
"""Every function of the host that SafeGen stands around: one table.

Hooks that the host offers swallow exceptions, so what they guard gets through when they fail. A
wrap does not: what it raises ends the request, and the server lives on.

Reload UI runs the extension again, and other extensions wrap the same functions. So a function is
replaced once for the life of the process, by a wrapper that asks its slot what to do; installing
again only fills the slot anew, and there is never a second layer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from safegen_core.errors import SafeGenError

Around = Callable[..., Any]
"""Called as `around(original, *args, **kwargs)` in the original's place."""


@dataclass(frozen=True)
class Wrap:
    """One function of the host, and what is done around it.

    Attributes:
        target: "package.module:function" or "package.module:Class.method".
        around: see `Around`.
        why: what would leave, or stay unprotected, without it.
        optional: hosts without such a function are served as well.
    """

    target: str
    around: Around
    why: str
    optional: bool = False


@dataclass
class _Slot:
    wrap: Wrap | None
    wrapper: Any = None
    owner: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class State:
    """How a wrap stands.

    Attributes:
        target, why: as in `Wrap`.
        installed: it is at work.
        outermost: nobody has put anything over it, or in its place.
    """

    target: str
    why: str
    installed: bool
    outermost: bool


_slots: dict[str, _Slot] = {}


def install(wraps: Iterable[Wrap]) -> None:
    """Put every wrap of a table in place; those that are there already are filled anew.

    Raises:
        SafeGenError: `webui_host` when the host lacks a function that has to be guarded. Nothing is
            undone then: the caller refuses to generate.
    """
    missing = []
    for wrap in wraps:
        slot = _slots.get(wrap.target)
        if slot is not None:
            slot.wrap = wrap
            continue
        try:
            owner, name = _found(wrap.target)
            original = getattr(owner, name)
        except (ImportError, AttributeError):
            if not wrap.optional:
                missing.append(wrap.target)
            continue
        slot = _slots[wrap.target] = _Slot(wrap, owner=owner)
        slot.wrapper = _wrapper(original, slot)
        setattr(owner, name, slot.wrapper)
    if missing:
        raise SafeGenError(
            "webui_host",
            f"This host lacks {', '.join(missing)}, which SafeGen has to stand around. It is "
            "of a version that SafeGen does not know; update SafeGen, or disable the extension.",
        )


def release() -> None:
    """Let every wrapped function do what it did before, until `install` is called again."""
    for slot in _slots.values():
        slot.wrap = None


def states() -> list[State]:
    """All wraps that were ever put in place, for the status page and the self-test."""
    return [_state(target, slot) for target, slot in sorted(_slots.items())]


def _state(target: str, slot: _Slot) -> State:
    _, name = _parts(target)
    outermost = getattr(slot.owner, name.rpartition(".")[2], None) is slot.wrapper
    return State(target, slot.wrap.why if slot.wrap else "", slot.wrap is not None, outermost)


def _wrapper(original: Any, slot: _Slot) -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if slot.wrap is None:
            return original(*args, **kwargs)
        return slot.wrap.around(original, *args, **kwargs)

    return wrapper


def _found(target: str) -> tuple[Any, str]:
    module, name = _parts(target)
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for one in classes:
        owner = getattr(owner, one)
    return owner, last


def _parts(target: str) -> tuple[str, str]:
    module, _, name = target.partition(":")
    return module, name
