# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, Reload UI, and going without us."""

from __future__ import annotations

import types

import pytest

pytest.importorskip("torch")

from safegen_core.errors import SafeGenError
from safegen_webui import extension, settings, wraps


@pytest.fixture
def host(webui, monkeypatch):
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    for name in ("processing", "images", "scripts", "sd_samplers_cfg_denoiser"):
        webui(name)
    # the parts of the host that are not in this one have tests of their own
    there = [wrap for wrap in extension.WRAPS if _is_there(wrap)]
    monkeypatch.setattr(extension, "WRAPS", tuple(there))
    assert len(there) > 8
    return webui


def _is_there(wrap):
    try:
        owner, name = wraps._found(wrap.target)
        return hasattr(owner, name)
    except (ImportError, AttributeError):
        return False


def test_every_target_is_wrapped_by_one_room_only():
    targets = [wrap.target for wrap in extension.WRAPS]
    assert len(targets) == len(set(targets))
    assert all(wrap.why for wrap in extension.WRAPS)


def test_reload_leaves_one_wrap(host):
    extension.start()
    inner = host("processing").process_images_inner
    for _ in range(2):
        extension._unloaded()
        extension.start()
    assert host("processing").process_images_inner is inner
    assert all(state.installed and state.outermost for state in wraps.states())


def test_without_us_the_host_is_as_before(host):
    extension.start()
    extension._unloaded()
    assert not any(state.installed for state in wraps.states())


def test_a_servers_policy_outlives_the_extension(host, tmp_path):
    host("shared").cmd_opts.safegen_policy = str(tmp_path / "policy.json")
    extension.start()
    extension._unloaded()
    assert all(state.installed for state in wraps.states())


def test_a_host_without_what_must_be_guarded_is_refused(host, monkeypatch):
    missing = wraps.Wrap("modules.processing:nothing_like_it", lambda: None, "why")
    monkeypatch.setattr(extension, "WRAPS", (missing,))
    with pytest.raises(SafeGenError, match="nothing_like_it"):
        extension.start()


def test_the_host_is_told_whom_to_call(host):
    extension.start()
    called = host("script_callbacks").callbacks
    assert called["ui_settings"] == [settings.register]
    assert len(called["app_started"]) == len(called["script_unloaded"]) == 1


def test_the_script_is_always_there_and_known_by_its_mark(host, monkeypatch):
    runner = host("scripts")
    monkeypatch.setattr(runner, "Script", object, raising=False)
    monkeypatch.setattr(runner, "AlwaysVisible", object(), raising=False)
    import importlib
    import sys

    monkeypatch.delitem(sys.modules, "safegen_webui.script", raising=False)
    script = importlib.import_module("safegen_webui.script").SafeGen()
    assert script.is_safegen
    assert script.title() == "SafeGen"
    assert script.show(False) is script.show(True) is runner.AlwaysVisible
    seen = []
    monkeypatch.setattr("safegen_webui.exits.finished", lambda p, pp: seen.append(("finished", pp)))
    monkeypatch.setattr("safegen_webui.exits.batch", lambda p, pp: seen.append(("batch", pp)))
    p = types.SimpleNamespace()
    script.postprocess_batch_list(p, 1, batch_number=0)
    script.postprocess_image_after_composite(p, 2)
    assert seen == [("batch", 1), ("finished", 2)]
