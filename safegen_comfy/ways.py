# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do when something is missing: sentences with commands that work on this machine."""

from __future__ import annotations

from collections.abc import Callable

from ..safegen_core.errors import SafeGenError
from ..safegen_core.guard.readiness import no_nudenet
from ..safegen_core.trust.choice import Ways
from . import folders


def patch() -> Ways:
    """What people do when no patch could be chosen."""
    return Ways(
        folder=folders.own(),
        by_name="with 'Load SafeGen Patch'",
        by_itself="Apply SafeGen",
        unrelated="One can still be chosen with 'Load SafeGen Patch', but it may damage this model "
        "and protect nothing: look at the pictures.",
        meanwhile="Meanwhile 'SafeGen Check Image' works alone, with any model.",
    )


def no_patch() -> str:
    """No patch is installed: how to come by one."""
    return patch().no_patch()


def no_detector() -> str:
    """NudeNet's model is not there: how to come by it."""
    then = "Then queue again; ComfyUI need not be restarted."
    return no_nudenet(folders.own() / "detectors", then)


def true_or_sentence(attempt: Callable[[], object]) -> bool | str:
    """What `validate_inputs` answers: True, or why the graph cannot be queued."""
    try:
        attempt()
    except SafeGenError as error:
        return f"{error.message} [{error.code}]"
    return True
