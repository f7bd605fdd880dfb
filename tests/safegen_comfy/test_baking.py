# SPDX-License-Identifier: GPL-3.0-or-later
"""Saving protected copies, beside the little of ComfyUI that it asks for."""

from __future__ import annotations

import ntpath
import posixpath
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegen_core.bake import bake


class Interrupted(BaseException):
    """As in newer ComfyUI, where it is no Exception."""


class Host:
    """Folders, a progress bar and an interrupt."""

    def __init__(self, folder):
        self.output = folder / "output"
        self.folders = {kind: folder / kind for kind in ("checkpoints", "diffusion_models")}
        for kind in self.folders.values():
            kind.mkdir()
        self.interrupted_after = None
        self.seen = []

    def modules(self):
        folder_paths, comfy, management, utils = map(
            ModuleType, ("folder_paths", "comfy", "comfy.model_management", "comfy.utils")
        )
        folder_paths.get_filename_list = lambda kind: sorted(
            file.relative_to(self.folders[kind]).as_posix()
            for file in self.folders[kind].rglob("*.*")
        )
        folder_paths.get_full_path = lambda kind, name: str(self.folders[kind] / name)
        folder_paths.get_output_directory = lambda: str(self.output)
        folder_paths.get_save_image_path = self.save_path
        management.throw_exception_if_processing_interrupted = self.ask
        utils.ProgressBar = lambda total: self
        comfy.model_management, comfy.utils = management, utils
        return {module.__name__: module for module in (folder_paths, comfy, management, utils)}

    def save_path(self, prefix, output):
        folder, stem = posixpath.split(prefix)
        (self.output / folder).mkdir(parents=True, exist_ok=True)
        taken = len(list((self.output / folder).glob(f"{stem}_*")))
        return str(self.output / folder), stem, taken + 1, folder, prefix

    def ask(self):
        if self.interrupted_after is not None and len(self.seen) >= self.interrupted_after:
            raise Interrupted

    def update_absolute(self, done, total):
        self.seen.append((done, total))


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def baking(pack, host, monkeypatch):
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return pack("safegen_comfy.baking")


@pytest.fixture
def model(host, lab_state, save):
    return save(host.folders["checkpoints"] / "lab.safetensors", lab_state())


@pytest.fixture
def patch(pack, lab_state, patch_for, tmp_path):
    """A patch of the pack's own core, which is another one than the tests'."""
    own = patch_for(lab_state())
    own.write(tmp_path / "patch.safetensors")
    read = pack("safegen_core.patch").Patch.read(tmp_path / "patch.safetensors")
    return read, own.read(tmp_path / "patch.safetensors")


def test_it_saves_what_the_core_bakes_and_tells_how_far_it_is(baking, host, model, patch, tmp_path):
    theirs, ours = patch
    report = baking.save("lab.safetensors", theirs, "safe", 0.5)
    assert report.out == host.output / "checkpoints" / "safe_00001_.safetensors"
    wanted = bake(model, ours, tmp_path / "wanted.safetensors", 0.5)
    assert report.out.read_bytes() == wanted.out.read_bytes()
    total = wanted.patched + wanted.copied
    assert host.seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("after", [0, 1, 20])
def test_an_interrupt_leaves_nothing(baking, host, model, patch, after):
    host.interrupted_after = after
    with pytest.raises(Interrupted):
        baking.save("lab.safetensors", patch[0], "safe")
    assert len(host.seen) == after
    assert [file for file in host.output.rglob("*") if file.is_file()] == []


def test_names_never_collide(baking, host, model, patch):
    outs = [baking.save("lab.safetensors", patch[0], "a/safe").out for _ in range(2)]
    assert [out.name for out in outs] == ["safe_00001_.safetensors", "safe_00002_.safetensors"]


def test_menus_offer_what_can_be_saved(baking, host, model):
    (host.folders["checkpoints"] / "old.ckpt").touch()
    (host.folders["diffusion_models"] / "unet.SafeTensors").touch()
    assert baking.names() == ["lab.safetensors", "diffusion_models: unet.SafeTensors"]
    assert baking.find("lab.safetensors") == model
    found = baking.find("diffusion_models: unet.SafeTensors")
    assert found.parent == host.folders["diffusion_models"]


@pytest.mark.parametrize("name", ["old.ckpt", "gone.safetensors", "../patch.safetensors", ""])
def test_only_those_are_found(baking, host, model, patch, name):
    (host.folders["checkpoints"] / "old.ckpt").touch()
    with pytest.raises(Exception, match="is not there") as caught:
        baking.find(name)
    assert caught.value.code == "file_missing"


def test_a_replaced_model_has_another_signature(baking, model, lab_state, save):
    before = baking.signature("lab.safetensors")
    assert baking.signature("lab.safetensors") == before
    model.unlink()
    save(model, lab_state(), {"format": "pt", "replaced": "yes"})
    assert baking.signature("lab.safetensors") != before


@given(
    text=st.one_of(
        st.text(max_size=30),
        st.lists(
            st.sampled_from(["..", ".", "", " ", "a", "/", "\\", "C:", "..."]), max_size=6
        ).map("/".join),
    )
)
def test_no_name_leads_out_of_its_folder(baking, text):
    try:
        name = baking.require_name(text)
    except Exception as error:
        assert error.code == "file_name"  # noqa: PT017 - one of two right answers
        return
    for system, folder in ((posixpath, "/out/checkpoints"), (ntpath, "C:\\out\\checkpoints")):
        file = system.normpath(system.join(folder, name) + "_00001_.safetensors")
        assert file.startswith(folder + system.sep)
        assert not set(name) & set('\\<>:"|?*\0')


@pytest.mark.parametrize(
    ("given_name", "name"),
    [("protected", "protected"), (" a b ", "a b"), ("mine\\v2", "mine/v2"), ("x.safetensors", "x")],
)
def test_sensible_names_are_taken(baking, given_name, name):
    assert baking.require_name(given_name) == name


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "/etc/x", "C:\\x", "a//b", "a\nb", "a\u202eb"]
)
def test_others_are_refused(baking, name):
    with pytest.raises(Exception, match="no name for a file") as caught:
        baking.require_name(name)
    assert caught.value.code == "file_name"
