# SPDX-License-Identifier: GPL-3.0-or-later
"""The leak matrix: every door of a real host, without a check and with one that withholds all.

SAFEGEN_WEBUI_TABLES names a folder for the tables, `exits-<host>.json` and `.md`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from tests.hosts.comfyui.detector import LABEL, write_detector
from tests.hosts.webui import server
from tests.hosts.webui.doors import PROBE, Doors, Row, is_sign

pytestmark = [pytest.mark.host, pytest.mark.slow]

SKIPPED_SECOND_PASS = {("hires fix", "file -before-highres-fix")}
SKIPPED_SECOND_PASS |= {("hires fix, latent", "file -before-highres-fix")}


def write_policy(file: Path, detector: str = "red") -> None:
    """One that withholds every picture."""
    labels = {LABEL: {"threshold": 0, "action": "withhold"}}
    values = {"version": 1, "name": "all", "images": {"detectors": [detector], "labels": labels}}
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module", params=server.KINDS)
def kind(request):
    if reason := server.lacking(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def open_doors(kind, tmp_path_factory):
    """What leaves a server without the check."""
    data = tmp_path_factory.mktemp(f"{kind}-open")
    with server.Host(kind, data, extensions=(PROBE,), pack=False) as host:
        return Doors(host).walk()


@pytest.fixture(scope="module")
def guarded(kind, open_doors, tmp_path_factory):
    """A server with the check; the first has ended, as memory is short."""
    data = tmp_path_factory.mktemp(f"{kind}-guarded")
    write_detector(data / "models" / "safegen" / "detectors")
    write_policy(data / "policy.json")
    # Nobody asks for protection; what holds is the server's policy alone.
    (data / "config.json").write_text(json.dumps({"safegen_enabled": False}), encoding="utf-8")
    flags = ("--safegen-policy", str(data / "policy.json"))
    with server.Host(kind, data, *flags, extensions=(PROBE,)) as host:
        yield host


@pytest.fixture
def doors(guarded):
    yield Doors(guarded)
    assert guarded.alive


def test_no_door_lets_anything_out(kind, open_doors, doors, tmp_path):
    before = {(row.request, row.exit): row for row in open_doors}
    rows = doors.walk()
    _write(kind, open_doors, rows, Path(os.environ.get("SAFEGEN_WEBUI_TABLES", tmp_path)))
    assert [row for row in open_doors if not row.visible] == []  # such a door would prove nothing
    assert [row for row in rows if row.visible] == []
    after = {(row.request, row.exit) for row in rows if row.count}
    assert after == before.keys() - SKIPPED_SECOND_PASS


@pytest.mark.parametrize("part", ["hooks", "detector"])
def test_what_fails_lets_nothing_out(doors, part):
    doors.probed("break", part)
    try:
        for name in ("batch and grid", "hires fix", "inpainting, only masked", "Extras"):
            for pictures in doors.doors()[name]().values():
                assert pictures
                assert all(map(is_sign, pictures))
    finally:
        doors.probed("break", "nothing")


def test_without_a_detector_every_request_is_refused(doors, guarded):
    policy = guarded.data / "policy.json"
    write_policy(policy, detector="not-here")
    try:
        for name in ("text to image", "image to image", "X/Y/Z plot", "Extras"):
            with pytest.raises(server.Refused) as caught:
                doors.doors()[name]()
            assert caught.value.status == 500
            assert "not-here" in caught.value.text
        for pictures in doors.doors()["another extension saves"]().values():
            assert all(map(is_sign, pictures))
    finally:
        write_policy(policy)
    made = doors.doors()["text to image"]()
    assert all(map(is_sign, made["returned"]))


def _write(kind: str, before: list[Row], after: list[Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"host": kind, "without": [*map(asdict, before)], "with": [*map(asdict, after)]}
    folder.joinpath(f"exits-{kind}.json").write_text(json.dumps(values, indent=1) + "\n")
    found = {(row.request, row.exit): row for row in after}
    lines = ["| request | exit | without the check | with it |", "|---|---|---|---|"]
    for row in before:
        left = found.get((row.request, row.exit))
        told = "nothing comes out" if left is None else f"{left.visible} of {left.count}"
        lines.append(f"| {row.request} | {row.exit} | {row.visible} of {row.count} | {told} |")
    folder.joinpath(f"exits-{kind}.md").write_text("\n".join(lines) + "\n")
