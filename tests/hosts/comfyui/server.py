# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ComfyUI server on a free loopback port, with a base directory of its own.

    with Server(Path(".comfyui/0.30.0"), base) as server:
        Client(server.url).run(graph)

Everything it writes (outputs, database, custom nodes, models) is under the base directory.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

LAUNCH = Path(__file__).with_name("launch.py")


def version_of(source: Path) -> str:
    """The version a folder of ComfyUI's sources says it has."""
    told = (source / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', told)
    assert found, f"{source} is not a ComfyUI"
    return found[1]


class Server:
    """One running ComfyUI.

    Args:
        source: folder of ComfyUI's `main.py`.
        base: its base directory (models, custom_nodes, output ...).
        arguments: further arguments for `main.py`.
        env: further environment variables.
    """

    def __init__(
        self, source: Path, base: Path, arguments: tuple[str, ...] = (), env: dict | None = None
    ) -> None:
        self.source, self.base = source, base
        self.version = version_of(source)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        self._arguments, self._env = arguments, env or {}
        self._process: subprocess.Popen | None = None

    def start(self, seconds: float = 180) -> Server:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended or did not answer in time; the message has the log's end.
        """
        for folder in ("models", "custom_nodes", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(LAUNCH), str(self.source)),
            *("--cpu", "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.base), "--disable-api-nodes", "--disable-auto-launch"),
            *("--database-url", f"sqlite:///{self.base.as_posix()}/user/comfyui.db"),
            *self._arguments,
        ]
        # One thread: nano models gain nothing from more, and lose much on a busy machine.
        told = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **told, **self._env}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.base, env=env
            )
        until = time.monotonic() + seconds
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > until:
                self.stop()
                why = "ended" if ended else f"did not answer within {seconds:g} s"
                raise RuntimeError(f"ComfyUI {self.version} {why}:\n{self.log[-4000:]}")
            time.sleep(0.2)
        return self

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def peak_memory(self) -> int:
        """Largest resident size so far in bytes (Linux)."""
        assert self._process is not None
        told = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", told)
        assert found
        return int(found[1]) * 1024

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/queue", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
