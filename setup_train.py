# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the environment for training that `setup-train.sh` and `setup-train.bat` have made.

uv resolves for this machine first and writes down every file with its size; the sum is told, and
only what was agreed to is downloaded. Standard library only: it runs in the empty environment,
whose Python the scripts choose (3.11 or newer).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent
APART = ("nudenet==3.4.2", "open-clip-torch")
"""For their files only, a detector and a vocabulary; the packages they ask for are not needed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Resolve, tell, ask, install, look at the result; 0 when all is well."""
    args = _arguments(arguments)
    print(f"Environment: {sys.prefix} (Python {platform.python_version()})")
    print(f"GPU: {_gpu() or 'no NVIDIA driver answers'}")
    lock = Path(sys.prefix, "pylock.toml")
    lock.unlink(missing_ok=True)  # uv would prefer what was chosen for another build
    try:
        _uv(args.uv, *_resolving(lock, args.torch))
    except subprocess.CalledProcessError:
        print(
            "uv could not find the packages; what it said is above. If torch's own index cannot be "
            "reached from here, --torch default takes the build of the ordinary one.",
            file=sys.stderr,
        )
        return 1
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    todo = [package for package in packages if not installed(package)]
    print(told(todo, shutil.disk_usage(sys.prefix).free))
    if todo and not args.yes and not _agreed():
        print("Nothing was installed.")
        return 1
    try:
        here = ("pip", "install", "--python", sys.executable)
        _uv(args.uv, *here, "--requirements", str(lock))
        _uv(args.uv, *here, "--no-deps", *APART, "--editable", str(ROOT))
    except subprocess.CalledProcessError:
        print("uv could not install; run this again to go on where it stopped.", file=sys.stderr)
        return 1
    return _looked_at()


def told(packages: Sequence[Mapping[str, Any]], free: int) -> str:
    """The size of a download, its greatest parts, and what is free, in a few lines."""
    if not packages:
        return "Everything is here already."
    sizes = {package["name"]: size(package) for package in packages}
    known = {name: count for name, count in sizes.items() if count is not None}
    unknown = [name for name in sizes if name not in known]
    greatest = sorted(known, key=known.__getitem__, reverse=True)[:5]
    lines = [
        f"To download: {len(packages)} packages, {sum(known.values()) / 1e9:.2f} GB"
        + (f", and what the index does not tell of {', '.join(unknown)}" if unknown else ""),
        *(f"  {name:<28}{known[name] / 1e6:8.0f} MB" for name in greatest),
        f"Free on this disk: {free / 1e9:.0f} GB; installed it takes two to three times as much.",
    ]
    return "\n".join(lines)


def size(package: Mapping[str, Any]) -> int | None:
    """Bytes that installing a package of the lock downloads, at most; None if nobody says.

    Which of several fitting wheels uv takes is its own matter; the greatest is counted.
    """
    files = [wheel for wheel in package.get("wheels", ()) if fits(_name(wheel))]
    if not files and "sdist" in package:
        files = [package["sdist"]]
    counts = [_bytes(file) for file in files]
    known = [count for count in counts if count is not None]
    return max(known) if known and len(known) == len(counts) else None


def fits(wheel: str) -> bool:
    """Whether a wheel is for this Python and this machine, by its name."""
    python, abi, system = wheel.removesuffix(".whl").split("-")[-3:]
    return any(map(_fits_python, python.split("."), [abi] * 9)) and any(
        map(_fits_system, system.split("."))
    )


def installed(package: Mapping[str, Any]) -> bool:
    """Whether this environment has this very version."""
    try:
        return importlib.metadata.version(package["name"]) == package.get("version")
    except importlib.metadata.PackageNotFoundError:
        return False


def _fits_python(python: str, abi: str) -> bool:
    major, minor = sys.version_info[:2]
    if abi == "abi3":
        return python.startswith("cp3") and int(python[3:] or 0) <= minor
    return python in (f"cp{major}{minor}", f"py{major}{minor}", f"py{major}")


def _fits_system(system: str) -> bool:
    machine = platform.machine().lower()
    if system == "any":
        return True
    if sys.platform == "win32":
        return system == {"amd64": "win_amd64", "arm64": "win_arm64"}.get(machine)
    if sys.platform == "darwin":
        return system.startswith("macosx") and system.endswith((f"_{machine}", "_universal2"))
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return system.startswith((libc, "linux_")) and system.endswith(f"_{machine}")


def _name(file: Mapping[str, Any]) -> str:
    # A lock names a file by its place; the index may have escaped a + in it.
    return str(file.get("name") or file.get("url") or file["path"]).rsplit("/", 1)[-1]


def _bytes(file: Mapping[str, Any]) -> int | None:
    """What the lock says of a file, else its server; nothing for a file that lies here."""
    if "size" in file:
        return int(file["size"])
    url = str(file.get("url", "file:"))
    if url.startswith("file:"):
        return 0
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):  # no answer, or one without a length
        return None


def _resolving(lock: Path, torch: str) -> list[str]:
    """What to ask uv for, to write down what the extra `train` needs here."""
    known = ROOT / "constraints.txt"  # of the repository; an installed pack has none
    words = ["pip", "compile", "--quiet", str(ROOT / "pyproject.toml"), "--extra", "train"]
    words += ["--python", sys.executable, "--format", "pylock.toml", "--output-file", str(lock)]
    if torch != "default":
        words += ["--torch-backend", torch]
    if known.is_file():
        lines = known.read_text(encoding="utf-8").splitlines()
        if torch != "default":  # the builds for an older driver end at an older version
            lines = [line for line in lines if not line.startswith("torch==")]
        chosen = lock.with_name("constraints.txt")
        chosen.write_text("\n".join(lines) + "\n", encoding="utf-8")
        words += ["--constraints", str(chosen)]
    return words


def _uv(uv: str, *words: str) -> None:
    subprocess.run([uv, *words], check=True)


def _agreed() -> bool:
    try:
        return input("Download and install? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _gpu() -> str:
    """Name and driver of the first NVIDIA GPU, as its driver tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.splitlines()[0] if found.returncode == 0 and found.stdout else ""


def _looked_at() -> int:
    """Let the doctor look at what was made, and name the next command."""
    safegen = Path(sys.executable).with_name(
        "safegen" + (".exe" if sys.platform == "win32" else "")
    )
    doctor = subprocess.run([safegen, "doctor"], check=False).returncode
    sees = "import torch; print(torch.cuda.is_available())"
    seen = subprocess.run(
        [sys.executable, "-c", sees], capture_output=True, text=True, check=False
    ).stdout
    if _gpu() and seen.strip() != "True":
        print(
            "\nThis torch does not see the GPU. Update its driver and run this again, or name a "
            "build: --torch cu126",
            file=sys.stderr,
        )
        return 1
    if doctor:
        print("\nThe doctor found something; the lines above say what to do.", file=sys.stderr)
        return doctor
    print(f'\nReady. Next:\n  "{safegen}" train --base model.safetensors --out my-patch --dry-run')
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fill the environment for training.")
    parser.add_argument("--uv", required=True, help="path of uv; the scripts give it")
    parser.add_argument("--yes", action="store_true", help="do not ask before downloading")
    parser.add_argument(
        "--torch",
        default="auto",
        metavar="BUILD",
        help="auto (fits the GPU's driver), cpu, cu126, ..., or default: what the index has",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
