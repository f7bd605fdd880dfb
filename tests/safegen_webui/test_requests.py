# SPDX-License-Identifier: GPL-3.0-or-later
"""A request is protected by what it asks for, never by less than stands; junk is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from safegen_core.errors import ConfigError, DetectorError, SafeGenError  # noqa: E402
from safegen_webui import jobs, last_batch, requests, settings, wraps  # noqa: E402
from safegen_webui.protection import NOTHING, Asked  # noqa: E402

ARGUMENTS = [True, "off", 1, "off", "default", "as the policy says"]


@pytest.fixture
def host(webui, reds, monkeypatch):
    """A host that makes one red square, under policies that stand in for the presets."""
    monkeypatch.setattr(requests.settings, "server_file", lambda: None)
    monkeypatch.setattr(requests.settings, "server", lambda: None)
    policies = {"strict": reds.policy("withhold"), "default": reds.policy()}
    monkeypatch.setattr(settings.patches, "open_policy", policies.__getitem__)
    wraps.install(requests.WRAPS)
    host = SimpleNamespace(load=webui, processing=webui("processing"), seen=[], reds=reds)
    host.shared = webui("shared")
    host.shared.sd_model = torch.nn.Linear(1, 1)
    host.shared.opts.safegen_patch = "off"
    host.shared.opts.safegen_prompts = "off"

    def draw(p):
        host.seen.append((jobs.current(), p.extra_generation_params.copy()))
        return host.processing.Processed(p, [reds.picture("red")])

    slot = wraps._slots["modules.processing:process_images_inner"]
    around = slot.wrap.around
    monkeypatch.setattr(host.processing, "process_images_inner", lambda p: around(draw, p))
    return host


def asking(arguments=None, begin=3):
    """The host's `p`; our arguments stand among those of other scripts."""
    scripts = None
    if arguments is not None:
        ours = SimpleNamespace(is_safegen=True, args_from=begin, args_to=begin + len(arguments))
        scripts = SimpleNamespace(alwayson_scripts=[SimpleNamespace(), ours])
    given = ["x"] * begin + list(arguments or []) + ["y"]
    return SimpleNamespace(scripts=scripts, script_args=given, extra_generation_params={})


def test_what_is_asked_for_is_done(host):
    done = host.processing.process_images(asking([*ARGUMENTS[:4], "strict", "as the policy says"]))
    job, parameters = host.seen[0]
    assert [verdict.action for verdict in job.verdicts] == ["withhold"]
    assert parameters["SafeGen"] == "on"
    assert not host.reds.shows(done.images[0])


def test_a_request_without_scripts_gets_the_defaults(host):
    host.processing.process_images(asking())
    assert host.seen[0][0].protection == settings.protection(settings.defaults())
    assert host.seen[0][0].protection.images


def test_protection_may_be_switched_off_where_nothing_stands(host):
    done = host.processing.process_images(asking([False]))
    assert host.seen[0][0].protection == NOTHING
    assert host.reds.shows(done.images[0])


def test_nothing_switches_off_a_servers_policy(host, monkeypatch):
    monkeypatch.setattr(settings, "server", lambda: host.reds.policy("withhold"))
    done = host.processing.process_images(asking([False, "off", 0, "off", "off"]))
    assert not host.reds.shows(done.images[0])


@pytest.mark.parametrize("value", ["false", {}, None, 1, 0, [True], "on"])
def test_junk_is_refused_before_anything_is_made(host, value):
    with pytest.raises(ConfigError, match=r"enabled must be true or false.*\[config_value\]$"):
        host.processing.process_images(asking([value]))
    assert host.seen == []
    assert jobs.current() is None


def test_the_pages_secret_and_its_task_go_with_the_job(host):
    host.load("progress").current_task = "task(a)"
    host.processing.process_images(asking([*ARGUMENTS, "secret"]))
    job = host.seen[0][0]
    assert jobs.of_task("task(a)", "secret") is job
    for wrong in ("", "other", "\u00e9"):
        assert jobs.of_task("task(a)", wrong) is None
    assert jobs.of_task("task(b)", "secret") is None


@pytest.mark.parametrize("secret", [None, 5, {}, "x" * 1000, ""])
def test_a_job_without_a_secret_is_nobodys(host, secret):
    host.load("progress").current_task = "task(a)"
    host.processing.process_images(asking([*ARGUMENTS, secret]))
    assert jobs.of_task("task(a)", "") is None
    assert jobs.of_task("task(a)", str(secret)) is None


def test_a_pass_within_a_request_is_protected_as_the_request_is(host, monkeypatch):
    def draw(p):
        host.processing.process_images_inner(asking([False]))
        return host.processing.Processed(p, [host.reds.picture("red")])

    inner = wraps._slots["modules.processing:process_images_inner"].wrap.around
    done = inner(draw, asking(ARGUMENTS))
    assert host.seen[0][0].protection.images
    assert not host.reds.shows(done.images[0])


def test_what_a_script_returns_is_swept(host, monkeypatch):
    runner = host.load("scripts").ScriptRunner()
    made = host.processing.Processed(None, [host.reds.picture("red")])
    runner.selectable_scripts = [SimpleNamespace(run=lambda p: made)]
    assert not host.reds.shows(runner.run(asking(), 1).images[0])
    assert runner.run(asking(), 0) is None


def test_no_detector_no_picture(host, monkeypatch):
    def fails(name, **_):
        raise DetectorError("detector_missing", "There is no detector.")

    monkeypatch.setattr(host.reds, "open", fails)
    with pytest.raises(SafeGenError, match=r"\[detector"):
        host.processing.process_images(asking(ARGUMENTS))
    assert host.seen == []
    assert "detector" in jobs.last().refused


def test_the_last_batch_is_kept_for_its_page_only(host):
    picture = host.reds.picture("red")
    with jobs.begun(host.reds.protection(), page="secret") as job:
        last_batch.keep(picture)
    assert [kept.tobytes() for kept in last_batch.of(job)] == [picture.tobytes()]
    with jobs.begun(host.reds.protection()) as other:
        last_batch.keep(picture)
    assert last_batch.of(other) == []
    host.processing.process_images(asking())
    assert last_batch.of(job) == []


def test_nothing_is_kept_under_a_servers_policy(host, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "server_file", lambda: tmp_path)
    with jobs.begun(host.reds.protection(), page="secret") as job:
        last_batch.keep(host.reds.picture("red"))
    monkeypatch.setattr(settings, "server_file", lambda: None)
    assert last_batch.of(job) == []


def test_memory_for_the_last_batch_is_bounded(host, monkeypatch):
    monkeypatch.setattr(last_batch, "MOST_PIXELS", 2 * 32 * 24)
    with jobs.begun(host.reds.protection(), page="secret") as job:
        for _ in range(5):
            last_batch.keep(host.reds.picture("red"))
    assert len(last_batch.of(job)) == 2


def test_asked_and_the_arguments_agree():
    assert Asked.read(ARGUMENTS, Asked()).images == "default"
