# SPDX-License-Identifier: GPL-3.0-or-later
"""A real host of the A1111 family, started on a free port with a data folder of its own.

    with Host("a1111", tmp_path) as host:
        images = host.txt2img(prompt="a square", steps=2)

SAFEGEN_A1111, SAFEGEN_FORGE and SAFEGEN_REFORGE name the hosts' folders, SAFEGEN_WEBUI_ASSETS one
with `checkpoints`, `loras` and `hf` (a HF_HOME with CLIP's words). SAFEGEN_A1111_PYTHON (...) is
the Python to run a host with, if it is not the folder's own `venv`, SAFEGEN_A1111_FLAGS (...) more
of its command line: --medvram, and SAFEGEN_A1111_CHECKPOINT (...) other checkpoints of the assets
than those of `CHECKPOINTS`: minixl, minisd2.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[3]
PROBE = Path(__file__).with_name("probe")
KINDS = {"a1111": "SAFEGEN_A1111", "forge": "SAFEGEN_FORGE", "reforge": "SAFEGEN_REFORGE"}
CHECKPOINTS = {
    kind: os.environ.get(f"{name}_CHECKPOINT", "tiny" if kind == "a1111" else "mini")
    for kind, name in KINDS.items()
}
"""Which of the assets a host loads: only A1111 reads shapes from a file beside a checkpoint."""

_CPU = {
    "a1111": ("--use-cpu", "all", "--skip-torch-cuda-test", "--no-half", "--precision", "full"),
    "forge": ("--always-cpu", "--skip-torch-cuda-test", "--all-in-fp32"),
    "reforge": ("--always-cpu", "--skip-torch-cuda-test", "--all-in-fp32"),
}
_UP = "Startup time: "


class Refused(Exception):
    """The host answered with an error.

    Attributes:
        status: HTTP status.
        text: what it said.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status, self.text = status, text


def lacking(kind: str) -> str | None:
    """Why the tests of a host cannot run here, None if they can."""
    for name in (KINDS[kind], "SAFEGEN_WEBUI_ASSETS"):
        if not os.environ.get(name):
            return f"{name} names no folder"
    return None


class Host:
    """A running host; ends with the `with` block.

    Args:
        kind: one of `KINDS`.
        data: its data folder; models and extensions are linked into it.
        flags: more of its command line.
        extensions: folders to link into its extensions, beside the pack's own.
        pack: whether the pack is one of the extensions.
    """

    def __init__(
        self,
        kind: str,
        data: Path,
        *flags: str,
        extensions: tuple[Path, ...] = (),
        pack: bool = True,
    ) -> None:
        more = os.environ.get(f"{KINDS[kind]}_FLAGS", "").split()
        self.kind, self.data, self._flags = kind, data, (*flags, *more)
        self._folder = Path(os.environ[KINDS[kind]])
        self._assets = Path(os.environ["SAFEGEN_WEBUI_ASSETS"])
        self._extensions = [*([ROOT] if pack else []), *extensions]
        self.log = data / "log.txt"

    def __enter__(self) -> Host:
        """Start it and wait until it serves."""
        self._link()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        checkpoint = self.models / "Stable-diffusion" / f"{CHECKPOINTS[self.kind]}-a.safetensors"
        command = [self._python(), "launch.py", *_CPU[self.kind], "--skip-python-version-check"]
        command += ["--skip-version-check", "--skip-install", "--skip-prepare-environment"]
        command += ["--no-download-sd-model", "--api", "--port", str(port), "--data-dir", self.data]
        command += ["--ckpt", checkpoint, *self._flags]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=self._folder,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # Asking over HTTP before it is up can end it: middleware is added last.
        deadline = time.monotonic() + 600
        while _UP not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"{self.kind} did not start: {self.tail()}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def models(self) -> Path:
        """Its models folder."""
        return self.data / "models"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def tail(self, lines: int = 40) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> Any:
        """The JSON of a route.

        Raises:
            Refused: it answered with an error.
        """
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, **body: Any) -> Any:
        """What a route answers to a JSON object.

        Raises:
            Refused: it answered with an error.
        """
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, data, headers))

    def txt2img(self, **body: Any) -> list[np.ndarray]:
        """Pictures, uint8 `[H, W, 3]` each, of a small standard request and what is given.

        Raises:
            Refused: it answered with an error.
        """
        return pictures(self.post("/sdapi/v1/txt2img", **(request() | body)))

    def options(self, **values: Any) -> None:
        """Set options."""
        self.post("/sdapi/v1/options", **values)

    def _link(self) -> None:
        for kind, name in (("checkpoints", "Stable-diffusion"), ("loras", "Lora")):
            folder = self.models / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted((self._assets / kind).glob(f"*{CHECKPOINTS[self.kind]}[-.]*")):
                _linked(folder / file.name, file)
        (self.data / "extensions").mkdir(exist_ok=True)
        for extension in self._extensions:
            name = "sd-webui-safegen" if extension == ROOT else extension.name
            _linked(self.data / "extensions" / name, extension)

    def _python(self) -> str:
        named = os.environ.get(f"{KINDS[self.kind]}_PYTHON")
        return named or str(self._folder / "venv" / "bin" / "python")

    def _environment(self) -> dict[str, str]:
        temporary = self.data / "tmp"
        temporary.mkdir(exist_ok=True)
        return os.environ | {
            "HF_HOME": str(self._assets / "hf"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": str(temporary),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SAFEGEN_LEDGER": str(self.data / "ledger.json"),
            "no_proxy": "127.0.0.1,localhost",
        }

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=900) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None


def request() -> dict[str, Any]:
    """The smallest request that is worth looking at."""
    return {
        "prompt": "a square",
        "negative_prompt": "",
        "seed": 1,
        "steps": 2,
        "width": 64,
        "height": 64,
        "sampler_name": "Euler",
        "cfg_scale": 7,
    }


def pictures(answer: dict[str, Any]) -> list[np.ndarray]:
    """The pictures of an answer, uint8 `[H, W, 3]` each."""
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one.split(",", 1)[-1]))).convert("RGB"))
        for one in answer["images"]
    ]


def _linked(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)
