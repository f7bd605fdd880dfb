# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds without anybody asking: the page's defaults, and the server's policy.

The defaults are ordinary options of the host. Whoever may use the settings page can change them,
and on some hosts whoever may use the API, so they are no control. The policy is: one file, named by
`--safegen-policy` or SAFEGEN_POLICY, which no request reaches; it raises what is asked
(`protection.joined`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from safegen_core.errors import ConfigError, SafeGenError
from safegen_core.policy import PRESETS, Policy

from . import patches
from . import previews as previewing
from .protection import (
    ACTIONS,
    AUTO,
    NOTHING,
    OFF,
    PROMPTS,
    REQUIRED,
    Asked,
    Protection,
    joined,
)

VARIABLE = "SAFEGEN_POLICY"
"""In the environment; the flag `--safegen-policy` counts before it."""

SECTION = ("safegen", "SafeGen")
PREVIEWS = "safegen_previews"

_LABELS = {
    "enabled": "Protect pictures unless a request says otherwise",
    "patch": "Patch",
    "strength": "Strength of the patch",
    "prompts": "Sanitizer",
    "images": "Image check",
    "action": "What is done with a picture that was found",
}

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_policy: tuple[tuple, Policy] | None = None


def register() -> None:
    """Put our section on the host's settings page; called by the host."""
    import gradio as gr
    from modules import shared

    def menu(listed: Callable[[], list[str]]) -> tuple[Any, Any]:
        return gr.Dropdown, lambda: {"choices": listed()}  # asked whenever the page is made

    components: dict[str, tuple[Any, Any]] = {
        "enabled": (gr.Checkbox, {}),
        "patch": menu(patch_choices),
        "strength": (gr.Slider, {"minimum": 0, "maximum": 2, "step": 0.05}),
        "prompts": menu(lambda: [*PROMPTS]),
        "images": menu(image_choices),
        "action": menu(lambda: [*ACTIONS]),
    }
    for field in fields(Asked):
        _add(shared, key(field.name), field.default, _LABELS[field.name], *components[field.name])
    _add(
        shared, PREVIEWS, previewing.JUDGED, "Live previews", gr.Radio,
        {"choices": [*previewing.MODES]},
    )  # fmt: skip


def key(name: str) -> str:
    """The host's option behind a field of `Asked`."""
    return f"safegen_{name}"


def patch_choices() -> list[str]:
    """What the menus offer for the patch."""
    return [AUTO, REQUIRED, OFF, *patches.names()]


def image_choices() -> list[str]:
    """What the menus offer for the image check."""
    return [OFF, *sorted(PRESETS), *patches.policy_names()[len(PRESETS) :]]


def defaults() -> Asked:
    """What a request asks for that says nothing; an option that was spoilt counts as untouched."""
    from modules import shared

    found = Asked()
    for field in fields(Asked):
        value = getattr(shared.opts, key(field.name), field.default)
        try:
            found = Asked.read({field.name: value}, found)
        except ConfigError:
            continue
    return found


def protection(asked: Asked) -> Protection:
    """What is done for a request, raised to what the server demands.

    Raises:
        PolicyError: a policy, the request's or the server's, cannot be read.
    """
    if not asked.enabled:
        return joined(NOTHING, server())
    policies = () if asked.images == OFF else (patches.open_policy(asked.images),)
    own = Protection(asked.patch, float(asked.strength), asked.prompts, policies, asked.action)
    return joined(own, server())


def standing() -> Protection:
    """What holds where no request is served.

    Raises:
        PolicyError: as `protection`.
    """
    return protection(defaults())


def previews() -> str:
    """One of `previews.MODES`."""
    from modules import shared

    chosen = getattr(shared.opts, PREVIEWS, previewing.JUDGED)
    return chosen if chosen in previewing.MODES else previewing.JUDGED


def server_file() -> Path | None:
    """The file of the server's policy, None where there is none."""
    from modules import shared

    named = getattr(shared.cmd_opts, "safegen_policy", None) or os.environ.get(VARIABLE)
    return Path(named) if named else None


def server() -> Policy | None:
    """The server's policy; read again when its file has changed.

    Raises:
        PolicyError, FileError: it cannot be read (any more). Then nothing is generated. The log
            says why; whoever asked for a picture need not know where the server keeps its files.
    """
    file = server_file()
    try:
        return None if file is None else _read(file)
    except SafeGenError as error:
        _log.error("%s", error.message)
        raise type(error)(
            error.code,
            "The safety policy of this server cannot be read, so nothing is generated. The "
            "server's log says why.",
        ) from None


def _read(file: Path) -> Policy:
    global _policy
    try:
        status = os.stat(file)
    except OSError:
        return Policy.read(file)  # which says what is wrong
    stamp = (str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    with _lock:
        if _policy is None or _policy[0] != stamp:
            _policy = stamp, Policy.read(file)
        return _policy[1]


def _add(shared: Any, name: str, default: Any, label: str, component: Any, arguments: Any) -> None:
    option = shared.OptionInfo(
        default, label, component, arguments, section=SECTION, restrict_api=True
    )
    shared.opts.add_option(name, option if name == PREVIEWS else option.needs_reload_ui())
