# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen doctor`: what SafeGen finds on this machine, to read first when something does not work.

Every part is a small function from the place to facts; `PARTS` lists them and a later room adds its
own there. Nothing is changed and nothing heavy is imported except torch, whose devices cannot be
learned otherwise. The user's home folder is printed as `~`, since the output goes into issues.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import FileError, SafeGenError
from ..families import FAMILIES
from ..place import Place, find_place, importable_from, own_folder

Facts = dict[str, Any] | list[Any]

PACKAGES = (
    "numpy",
    "Pillow",
    "safetensors",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "nudenet",
    "av",
)

# The oldest versions the core is tested with (`make oldest`).
OLDEST = {"numpy": "1.26.2", "Pillow": "9.5.0", "safetensors": "0.4.2"}


def safegen(place: Place) -> Facts:
    """This copy of SafeGen."""
    return {"version": __version__, "folder": str(place.pack)}


def system(place: Place) -> Facts:
    """Operating system and Python."""
    return {
        "system": platform.platform(),
        "Python": f"{platform.python_version()} ({platform.machine()})",
        "executable": sys.executable,
    }


def host(place: Place) -> Facts:
    """The host this copy belongs to."""
    facts = {"host": place.host}
    if place.host_folder is not None:
        facts["folder"] = str(place.host_folder)
    if version := _comfyui_version(place):
        facts["version"] = version
    return facts


def devices(place: Place) -> Facts:
    """Torch and what it can compute on, memory in GiB."""
    if importlib.util.find_spec("torch") is None:
        return {"torch": "not installed"}
    import torch

    facts = {"torch": torch.__version__, "cpu": f"{os.cpu_count()} cores"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        facts["mps"] = "available, shares the system's memory"
    return facts


def packages(place: Place) -> Facts:
    """Installed versions of the packages SafeGen can use."""
    return {name: _version(name) or "not installed" for name in PACKAGES}


def detectors(place: Place) -> Facts:
    """Whether pictures can be checked, and with what."""
    from ..detect.nudenet import find_model
    from ..detect.shelf import Shelf, named_folders

    folders = [*place.detector_folders, *named_folders()]
    runtime = importlib.util.find_spec("onnxruntime")
    facts = {"run by": "onnxruntime" if runtime else "torch (onnxruntime would be faster on a CPU)"}
    try:
        facts["nudenet"] = str(find_model(folders))
    except SafeGenError as error:
        facts["nudenet"] = error.message
    others = Shelf(*folders).names()[1:]
    return {**facts, "others": f"{', '.join(others)} (not opened)"} if others else facts


def families(place: Place) -> Facts:
    """The model families that can be patched."""
    return {
        family.name: f"{family.title}, {family.parameters:,} self-attention parameters"
        for family in FAMILIES.values()
    }


def patches(place: Place) -> Facts:
    """The patches found, or why a file is none."""
    found = [file for folder in place.patch_folders for file in folder.rglob("*.safetensors")]
    return [_patch(file) for file in sorted(found)]


def conflicts(place: Place) -> Facts:
    """Sentences about what will not work together; empty when all is well."""
    return [
        *_second_core(place),
        *_second_pack(place),
        *_stale_metadata(),
        *_too_old(),
        *_numpy_torch_mismatch(),
    ]


Part = Callable[[Place], Facts]

PARTS: tuple[tuple[str, Part], ...] = (
    ("SafeGen", safegen),
    ("System", system),
    ("Host", host),
    ("Devices", devices),
    ("Packages", packages),
    ("Detectors", detectors),
    ("Families", families),
    ("Patches", patches),
    ("Conflicts", conflicts),
)


def examine(place: Place, parts: tuple[tuple[str, Part], ...] = PARTS) -> dict[str, Facts]:
    """Run every part. One that fails says how instead of ending the examination."""
    report: dict[str, Facts] = {}
    for title, part in parts:
        try:
            report[title] = part(place)
        except Exception as error:  # a broken torch raises anything; the doctor must still report
            report[title] = {"failed": f"{type(error).__name__}: {error}"}
    return report


def render(report: dict[str, Facts]) -> str:
    """The report as text: a title a part, a line a fact."""
    lines: list[str] = []
    for title, facts in report.items():
        lines.append(title)
        if isinstance(facts, dict):
            width = max((len(name) for name in facts), default=0)
            lines += [f"  {name:<{width}}  {value}" for name, value in facts.items()]
        else:
            lines += [f"  {_one_line(item)}" for item in facts] or ["  none found"]
    return "\n".join(lines)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `safegen doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="report host, devices, packages, patches and conflicts (paste this into an issue)",
        description="Report what SafeGen finds on this machine. Exit status 1 if there are "
        "conflicts or a part could not be examined.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--patches",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also list the patches in this folder (may be repeated)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine, print, and return 1 if anything needs attention."""
    for folder in args.patches:
        if not folder.is_dir():
            raise FileError("file_missing", f"There is no folder {folder}. Check --patches.")
    report = _without_home(examine(find_place(own_folder(), tuple(args.patches))))
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else render(report))
    failed = any(isinstance(facts, dict) and "failed" in facts for facts in report.values())
    return 1 if failed or report["Conflicts"] else 0


def _comfyui_version(place: Place) -> str | None:
    if place.host != "ComfyUI" or place.host_folder is None:
        return None
    try:
        told = (place.host_folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:  # older than that file, or its data lie apart from it (--base-directory)
        return None
    found = re.search(r'__version__ = "([^"]+)"', told)
    return found[1] if found else None


def _patch(file: Path) -> dict[str, str]:
    from ..patch import Patch
    from ..trust import Ledger, default_path, judge

    try:
        patch = Patch.read(file)
    except SafeGenError as error:
        return {"file": str(file), error.code: error.message}
    ledger = Ledger(default_path())
    trust = judge(patch, file, ledger, ledger.keys_folder)
    return {
        "file": str(file),
        "family": patch.family.name,
        "form": f"rank {'/'.join(map(str, patch.ranks))}" if patch.ranks else "whole",
        "base": patch.base.digest[:16] if patch.base else "unknown",
        "trust": f"{trust.level}: {trust.reason}",
    }


def _second_core(place: Place) -> list[str]:
    """Other copies of safegen_core that this Python could import instead of this one."""
    own = (place.pack / "safegen_core").resolve()
    roots = [Path(entry or ".") / "safegen_core" for entry in sys.path]
    if (installed := importable_from("safegen_core")) is not None:
        roots.append(installed / "safegen_core")
    others = {root.resolve() for root in roots if (root / "__init__.py").is_file()} - {own}
    return [
        f"A second SafeGen can be imported from {other.parent}: uninstall it, or commands and "
        f"nodes may run different versions."
        for other in sorted(others)
    ]


def _second_pack(place: Place) -> list[str]:
    """Other folders of the pack in the same host: both would register the same nodes."""
    if place.host_folder is None or place.host_folder != place.pack.parent.parent:
        return []
    return [
        f"The host holds a second copy of this pack in {marker.parents[1]}: remove one."
        for marker in sorted(place.pack.parent.glob("*/safegen_core/__init__.py"))
        if marker.parents[1].resolve() != place.pack.resolve()
        and marker.parents[1].suffix != ".disabled"
    ]


def _stale_metadata() -> list[str]:
    installed = _version("safegen")
    if installed in (None, __version__):
        return []
    return [f"pip believes SafeGen {installed} is installed, this is {__version__}: reinstall it."]


def _too_old() -> list[str]:
    return [
        f"{name} {found} is older than {oldest}, the oldest SafeGen is tested with: update it."
        for name, oldest in OLDEST.items()
        if (found := _version(name)) and _numbers(found) < _numbers(oldest)
    ]


def _numpy_torch_mismatch() -> list[str]:
    """A torch built for another major numpy imports well and fails at the first conversion."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("numpy")):
        return []
    import torch

    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        return [f"torch {torch.__version__} and numpy {_version('numpy')} do not match: {error}"]
    return []


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers: "2.13.0+cpu" is (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))


def _one_line(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name}: {value}" for name, value in item.items())
    return str(item)


def _without_home(value: Any) -> Any:
    """Every string in a report, with the home folder replaced by `~`."""
    if isinstance(value, dict):
        return {name: _without_home(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_home(part) for part in value]
    home = os.path.expanduser("~")
    if not isinstance(value, str) or home in ("", "~", os.sep):
        return value
    flags = re.IGNORECASE if os.name == "nt" else 0
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value, flags=flags)
