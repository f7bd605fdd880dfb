# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of SafeGen knows the host it lies in, without importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safegen_core.place import find_place, own_folder


def make_pack(folder: Path) -> Path:
    (folder / "safegen_core").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("within", "host"),
    [
        ("ComfyUI/custom_nodes/safegen", "ComfyUI"),
        ("webui/extensions/sd-safegen", "A1111 family"),
        ("webui/extensions-builtin/sd-safegen", "A1111 family"),
        ("src/safegen", "none"),
    ],
)
def test_the_host_is_told_from_the_folder(tmp_path, within, host):
    place = find_place(make_pack(tmp_path / within))
    assert place.host == host
    assert place.host_folder == (None if host == "none" else tmp_path / Path(within).parts[0])


def test_an_importable_comfyui_is_a_host(tmp_path, monkeypatch):
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api" / "__init__.py").write_text("raise SystemExit('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    place = find_place(make_pack(tmp_path / "elsewhere"))
    assert (place.host, place.host_folder) == ("ComfyUI", tmp_path)


def test_patches_of_the_host_are_looked_for(tmp_path):
    pack = make_pack(tmp_path / "custom_nodes" / "safegen")
    assert find_place(pack).patch_folders == ()
    (tmp_path / "models" / "safegen").mkdir(parents=True)
    assert find_place(pack, (tmp_path,)).patch_folders == (
        tmp_path,
        tmp_path / "models" / "safegen",
    )


def test_detectors_are_kept_beside_the_patches(tmp_path):
    pack = make_pack(tmp_path / "custom_nodes" / "safegen")
    assert find_place(pack).detector_folders == (tmp_path / "models" / "safegen" / "detectors",)
    assert find_place(make_pack(tmp_path / "src" / "safegen")).detector_folders == ()


def test_own_folder_holds_this_package():
    assert (own_folder() / "safegen_core" / "place.py").is_file()
