# SPDX-License-Identifier: GPL-3.0-or-later
"""Real ComfyUI servers for the tests of this folder; `make test-comfyui` runs them.

Every test runs on each version in `.comfyui` and on the folder that SAFEGEN_COMFYUI names. Without
any, or outside `.venv-comfyui`, which has what ComfyUI imports, they are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.comfyui.client import Client
from tests.hosts.comfyui.graphs import Graph, Node
from tests.hosts.comfyui.server import Server
from tests.hosts.comfyui.sources import SOURCES

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("host")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model files for all servers, made once."""
    from tests.hosts.comfyui.world import write_models

    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session", params=SOURCES)
def server(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A running ComfyUI with the pack: one for each version and all tests."""
    from tests.hosts.comfyui.world import install, link_models

    source: Path = request.param
    base = tmp_path_factory.mktemp("comfyui")
    link_models(models, base)
    oldest = source == SOURCES[0].values[0]
    install(base, "safegen" if oldest else "sd-safegen", link=oldest)
    with Server(source, base) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A fresh client of the server."""
    return Client(server.url)


@pytest.fixture
def latent(client: Client) -> Callable[..., np.ndarray]:
    """What a model samples, float64 `[1, 4, 8, 8]`: `latent(lambda g: g.unet(), seed=3)`.

    Nothing comes from ComfyUI's cache, and equal arrays were equal bit for bit in the server.
    """

    def sampled(model: Callable[[Graph], Node], **how: Any) -> np.ndarray:
        graph = Graph()
        shown = graph.digest(model(graph), **how)
        run = client.run(graph)
        assert run.ok, run.error
        assert shown in run.executed
        return np.array(run.ui(shown, "values")[0]).reshape(run.ui(shown, "shape")[0])

    return sampled


@pytest.fixture
def graph() -> Graph:
    """An empty graph."""
    return Graph()


@pytest.fixture
def trusted(server: Server) -> Iterator[Callable[[str], None]]:
    """Trust an installed patch until the test is over: `trusted("sd1.safetensors")`."""
    folder = server.base / "models" / "safegen"
    ledger = folder / "ledger.json"

    def trust_it(name: str) -> None:
        from safegen_core import trust
        from safegen_core.patch import Patch

        trust.remember(Patch.read(folder / name), "chosen", trust.Ledger(ledger))

    yield trust_it
    ledger.unlink(missing_ok=True)


_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium for all tests: one, as Playwright runs in one loop at a time."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=_FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser, client: Client) -> Iterator:
    """ComfyUI's page, loaded and quiet; what its scripts raised must not name us."""
    client.post("/settings/Comfy.TutorialCompleted", True)
    page = browser.new_page(viewport={"width": 1800, "height": 1100})
    page.set_default_timeout(60_000)
    raised: list[str] = []
    page.on("pageerror", lambda error: raised.append(f"{error.message}\n{error.stack}"))
    page.on("console", lambda m: raised.append(m.text) if m.type == "error" else None)
    page.goto(client.url)
    # ready when its first graph is there, which would otherwise replace ours
    page.wait_for_function("window.comfyAPI?.app?.app?.graph?._nodes?.length > 0")
    assert page.evaluate("'SafeGenApply' in LiteGraph.registered_node_types")
    yield page
    page.close()
    assert not [text for text in raised if "safegen" in text.lower()]


@pytest.fixture
def between(client):
    """A threshold between what *Sanitize Conditioning* says of a striped and a plain prompt.

    The encoder is known then.
    """
    own = Graph()
    clip = own.add("CheckpointLoaderSimple", ckpt_name="nano-sd1.safetensors").output(1)
    reports = []
    for text in ("a striped star", "a plain star"):
        encoded = own.add("CLIPTextEncode", clip=clip, text=text)
        node = own.add("SafeGenSanitizeConditioning", conditioning=encoded, preset="custom",
                       threshold=0.99, clip=clip)  # fmt: skip
        reports.append(own.show(node.output(1)))
    run = client.run(own, seconds=900)
    assert run.ok, run.error
    told = [json.loads(run.ui(report, "value")[0]) for report in reports]
    high, low = (one["score"] for (one,) in told)
    assert high > low + 0.1
    return round((high + low) / 2, 2)
