# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the `main.py` of a ComfyUI: `python launch.py FOLDER [ComfyUI's arguments ...]`.

The package index has torchvision and torchaudio for CUDA only. Beside a CPU build of torch their
compiled parts do not load, and ComfyUI imports both at its start, though it calls them for a few
kinds of models only: so torchvision is given the operators it looks for, and torchaudio is empty.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

import torch


def without_cuda() -> None:
    """Let `import torchvision` and `import torchaudio` pass beside a CPU build of torch."""
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)
    parts = {
        name: module_from_spec(ModuleSpec(name, None, is_package=True))
        for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms")
    }
    sys.modules.update(parts)
    for name in ("functional", "transforms"):
        setattr(parts["torchaudio"], name, parts[f"torchaudio.{name}"])


if __name__ == "__main__":
    if not torch.cuda.is_available():
        without_cuda()
    folder = os.path.abspath(sys.argv[1])
    main = os.path.join(folder, "main.py")
    sys.argv = [main, *sys.argv[2:]]
    sys.path[0] = folder
    runpy.run_path(main, run_name="__main__")
