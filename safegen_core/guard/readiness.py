# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a policy can be followed on this machine, asked before anything is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..detect import NUDENET
from ..errors import DetectorError, SafeGenError
from ..place import quoted
from ..policy import Policy
from .judging import Opener, Panel

_tried: set[tuple[str, tuple[str, ...]]] = set()


def ready(policy: Policy, shelf: Opener, lacking: Callable[[], str]) -> tuple[str, ...]:
    """Open the detectors of a policy and try them once; later calls cost nothing.

    Args:
        policy: what pictures will be held against.
        shelf: where detectors come from.
        lacking: what the host says to who lacks NudeNet's model, see `no_nudenet`.

    Returns:
        The ids of policy and detectors: others, if the verdicts could be others.

    Raises:
        SafeGenError: why no picture could be judged; `detector_missing` names the way to get one.
    """
    try:
        panel = Panel(policy, shelf)
    except SafeGenError as error:
        if error.code == "detector_missing" and _lacks_nudenet(policy, shelf):
            raise DetectorError("detector_missing", lacking()) from error
        raise
    key = (policy.id, panel.ids)
    if key not in _tried:
        panel.trial()
        _tried.add(key)
    return (policy.id, *panel.ids)


def no_nudenet(folder: str | os.PathLike[str], then: str) -> str:
    """How to come by NudeNet's model, with a command for the Python that runs.

    Args:
        folder: the host's detectors folder.
        then: what there is to do in this host once it is there.
    """
    install = quoted(sys.executable, "-m", "pip", "install", "--no-deps", "nudenet")
    return (
        "The image check needs NudeNet's model (11 MB, AGPL-3.0), which is not shipped. Run: "
        f"{install} or put 320n.onnx or 640m.onnx into {os.fspath(folder)}. {then}"
    )


def _lacks_nudenet(policy: Policy, shelf: Opener) -> bool:
    if NUDENET not in policy.images.detectors:
        return False
    try:
        shelf.open(NUDENET, resolution="adaptive", limits={})
    except SafeGenError as error:
        return error.code == "detector_missing"
    return False
