# SPDX-License-Identifier: GPL-3.0-or-later
"""A user of ComfyUI's public API: queue a graph, watch the websocket, read the history.

    run = Client(server.url).run(graph)
    assert run.ok, run.error
    run.ui("7", "digest"), run.images("9"), run.cached, run.executed

A graph is ComfyUI's API format: node id -> {"class_type": ..., "inputs": {...}}.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

Graph = dict[str, dict[str, Any]]
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Refused(Exception):
    """The server did not take a prompt.

    Attributes:
        status: HTTP status.
        answer: the JSON it gave: "error" and "node_errors".
    """

    def __init__(self, status: int, answer: dict) -> None:
        super().__init__(f"HTTP {status}: {json.dumps(answer)}")
        self.status, self.answer = status, answer

    @property
    def sentences(self) -> str:
        """Every message and detail the answer has, a line each."""
        errors = [self.answer.get("error", {})]
        errors += [
            e for node in self.answer.get("node_errors", {}).values() for e in node["errors"]
        ]
        return "\n".join(f"{e.get('message', '')} {e.get('details', '')}" for e in errors)


@dataclass(frozen=True)
class Run:
    """What became of one prompt.

    Attributes:
        id: the prompt's id.
        status: "success" or "error", as /history says.
        outputs: node id -> its ui dictionary.
        messages: (event, data) of /history, oldest first.
        events: (type, data) seen on the websocket, oldest first; empty for `submit` and `wait`.
        previews: pictures that came over the websocket while it ran.
        seconds: from queueing to the end, as the websocket saw it.
    """

    id: str
    status: str
    outputs: dict[str, dict[str, list]]
    messages: list[tuple[str, dict]]
    client: Client = field(repr=False)
    events: list[tuple[str, dict]] = field(default_factory=list, repr=False)
    previews: list[bytes] = field(default_factory=list, repr=False)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the history calls it a success."""
        return self.status == "success"

    @property
    def error(self) -> str:
        """What stopped it: "node type: exception", empty if nothing did."""
        for event, data in self.messages:
            if event == "execution_error":
                return f"{data['node_type']}: {data['exception_message']}"
            if event == "execution_interrupted":
                return f"{data['node_type']}: interrupted"
        return ""

    @property
    def interrupted(self) -> bool:
        """Whether a user stopped it."""
        return any(event == "execution_interrupted" for event, _ in self.messages)

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that were not run because their results were known."""
        return {n for event, data in self.messages if event == "execution_cached"
                for n in data["nodes"]}  # fmt: skip

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that ran; a node behind a blocked output is announced as well."""
        return {data["node"] for event, data in self.events
                if event == "executing" and data.get("node")}  # fmt: skip

    def ui(self, node: str, key: str) -> list:
        """One list of a node's ui."""
        return self.outputs[node][key]

    def images(self, node: str) -> list[np.ndarray]:
        """The pictures a node shows or saved, uint8 RGB `[H, W, 3]` each."""
        return [np.asarray(image.convert("RGB")) for image in self.opened(node)]

    def opened(self, node: str) -> list[Image.Image]:
        """The same as Pillow images, with the metadata of their files in `info`."""
        return [
            Image.open(io.BytesIO(self.client.get_bytes("/view?" + urllib.parse.urlencode(where))))
            for where in self.outputs.get(node, {}).get("images", [])
        ]


class Client:
    """One client of a server, synchronous.

    Args:
        url: such as `http://127.0.0.1:8188`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = uuid.uuid4().hex

    def get_bytes(self, path: str) -> bytes:
        """GET."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """GET, JSON."""
        return json.loads(self.get_bytes(path))

    def post(self, path: str, body: Any = None) -> Any:
        """POST JSON; gives the JSON answered, or None for an empty answer.

        Raises:
            Refused: any status but 2xx.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                told = answer.read()
        except urllib.error.HTTPError as error:
            told = error.read()
            try:
                answer = json.loads(told)
            except ValueError:
                answer = {"error": {"message": told.decode("utf-8", "replace")}}
            raise Refused(error.code, answer) from None
        return json.loads(told) if told else None

    def object_info(self, node: str) -> dict:
        """How the server describes a node type."""
        return self.get(f"/object_info/{node}")[node]

    def interrupt(self) -> None:
        """Stop what runs now."""
        self.post("/interrupt")

    def submit(self, graph: Graph, **extra_data: Any) -> str:
        """Queue a graph; gives its prompt id.

        Raises:
            Refused: it was not taken.
        """
        body = {"prompt": graph, "client_id": self.id, "extra_data": extra_data}
        return self.post("/prompt", body)["prompt_id"]

    def wait(self, prompt: str, seconds: float = 300) -> Run:
        """Wait for the end of a queued prompt."""
        until = time.monotonic() + seconds
        while not (told := self.get(f"/history/{prompt}")):
            assert time.monotonic() < until, f"{prompt} did not end within {seconds:g} s"
            time.sleep(0.02)
        entry = told[prompt]
        messages = [(event, data) for event, data in entry["status"]["messages"]]
        return Run(prompt, entry["status"]["status_str"], entry["outputs"], messages, self)

    def run(
        self,
        graph: Graph,
        on_event: Callable[[str, dict], None] | None = None,
        seconds: float = 300,
        **extra_data: Any,
    ) -> Run:
        """Queue a graph and watch it to its end.

        Args:
            graph: the graph.
            on_event: called with each websocket event's type and data, as it arrives.
            seconds: at most so long.
            extra_data: as the front end sends it, such as `extra_pnginfo={...}`.

        Raises:
            Refused: it was not taken.
        """
        watching = asyncio.wait_for(self._run(graph, on_event, extra_data), seconds)
        with ThreadPoolExecutor(1) as thread:  # Playwright keeps a loop running in this one
            return thread.submit(asyncio.run, watching).result()

    async def _run(
        self, graph: Graph, on_event: Callable[[str, dict], None] | None, extra_data: dict
    ) -> Run:
        import aiohttp

        events: list[tuple[str, dict]] = []
        previews: list[bytes] = []
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.id}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            await socket.receive()  # its status: from now on it belongs to this client's id
            started = time.perf_counter()
            prompt = await asyncio.to_thread(self.submit, graph, **extra_data)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    previews.append(message.data)
                    continue
                told = json.loads(message.data)
                event, data = told["type"], told.get("data") or {}
                if data.get("prompt_id", prompt) != prompt:
                    continue
                events.append((event, data))
                if on_event:
                    await asyncio.to_thread(on_event, event, data)
                if event in _ENDS:
                    break
            seconds = time.perf_counter() - started
        done = await asyncio.to_thread(self.wait, prompt)
        return Run(
            done.id, done.status, done.outputs, done.messages, self, events, previews, seconds
        )
