# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to models in a request, each samples with exactly the patch asked for."""

from __future__ import annotations

import gc
import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from safegen_core.fingerprint import Fingerprint
from safegen_core.patch import Patch
from safegen_core.trust import Ledger, default_path
from safegen_webui import jobs, merging, patcher, sampling, side_path, weights, wraps
from safegen_webui.protection import AUTO, NOTHING, REQUIRED, Protection

NAMED = "mine.safetensors"


@pytest.fixture
def host(webui, tmp_path, monkeypatch, lab_state, moved):
    """A running A1111 with checkpoints: one, a relative of it, and a stranger."""
    monkeypatch.setattr(webui("paths"), "models_path", str(tmp_path / "models"))
    (tmp_path / "models" / "safegen").mkdir(parents=True)
    models = webui("sd_models")
    models.states.update(
        one=lab_state(), relative=moved(lab_state(), size=5e-3), stranger=lab_state(seed=7)
    )
    denoisers = webui("sd_samplers_cfg_denoiser")
    models.reload_model_weights(info="one")
    settings = ModuleType("safegen_webui.settings")
    settings.standing = lambda: NOTHING
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    monkeypatch.setattr(sys.modules["safegen_webui"], "settings", settings, raising=False)
    monkeypatch.setattr(weights, "_records", type(weights._records)())
    wraps.install(sampling.WRAPS)
    return SimpleNamespace(
        webui=webui, models=models, sample=denoisers.sample, shared=webui("shared"),
        settings=settings, safegen=tmp_path / "models" / "safegen",
    )  # fmt: skip


@pytest.fixture
def install(host, patch_for, lab_state):
    """Write a patch for the checkpoint "one"; gives what is read back."""

    def written(name=NAMED, trusted=True, seed=1, base="one", overwrite=False):
        file = host.safegen / name
        patch = patch_for(host.models.states[base], seed=seed, size=1e-2)
        patch.write(file, torch.float32, overwrite=overwrite)
        if trusted:
            Ledger(default_path()).record(Patch.read(file).id(), "chosen")
        return Patch.read(file)

    return written


@pytest.fixture
def draw(host):
    """A request: what it sampled, and its job."""

    def drawn(patch=AUTO, strength=1.0, checkpoint=None, **how):
        with jobs.begun(Protection(patch=patch, strength=strength)) as job:
            if checkpoint is not None:
                host.models.reload_model_weights(info=checkpoint)
            return host.sample(**how), job

    return drawn


@pytest.fixture
def patched(host, webui):
    """What a checkpoint draws that has the patch baked in."""

    def drawn(patch, checkpoint="one", strength=1.0):
        from safegen_core.apply import apply

        unet = webui("denoiser").Denoiser(host.models.states[checkpoint])
        apply(unet, patch, strength)
        return unet()

    return drawn


def plain(host, checkpoint="one"):
    return host.webui("denoiser").Denoiser(host.models.states[checkpoint])()


@pytest.mark.parametrize("mode", [AUTO, REQUIRED, NAMED])
def test_what_was_asked_for_is_sampled_with(draw, install, patched, mode):
    patch = install()
    seen, job = draw(mode, strength=0.7)
    assert all(torch.equal(step, patched(patch, strength=0.7)) for step in seen)
    told = job.patch["one"]
    assert (told["name"], told["id"], told["strength"]) == (NAMED, patch.id(), 0.7)
    assert (told["route"], told["match"], told["trust"]) == (merging.ROUTE, "green", "chosen")
    assert told["ram"] > 0


def test_off_samples_with_the_checkpoint_itself(host, draw, install):
    install()
    draw()
    seen, job = draw("off")
    assert torch.equal(seen[0], plain(host))
    assert job.patch == {"one": None}
    assert weights.status() == []


def test_strength_0_is_no_patch(host, draw, install):
    install()
    draw(strength=1.0)
    seen, job = draw(REQUIRED, strength=0.0)
    assert torch.equal(seen[0], plain(host))
    assert job.patch["one"]["route"] == weights.NOT_ADDED


def test_auto_without_a_patch_generates_and_says_so(host, draw):
    seen, job = draw(AUTO)
    assert torch.equal(seen[0], plain(host))
    assert job.patch == {"one": None}
    assert len(job.notes) == 1
    assert "patch extract" in job.notes[0]


def test_without_a_patch_nothing_else_generates(draw, install, refusal):
    assert refusal(draw, REQUIRED) == "patch_none"
    assert refusal(draw, NAMED) == "file_missing"
    install(trusted=False)
    assert refusal(draw, REQUIRED) == "patch_untested"
    draw(NAMED)


def test_a_patch_for_a_stranger_is_refused_by_name_too(host, draw, install, refusal):
    install()
    assert refusal(draw, NAMED, checkpoint="stranger") == "patch_base"
    assert refusal(draw, REQUIRED) == "patch_none"
    seen, job = draw(AUTO)
    assert torch.equal(seen[0], plain(host, "stranger"))
    assert job.notes


def test_a_relative_is_amber(draw, install, patched):
    patch = install()
    seen, job = draw(REQUIRED, checkpoint="relative")
    assert torch.equal(seen[0], patched(patch, "relative"))
    assert job.patch["relative"]["match"] == "amber"


@pytest.mark.parametrize("limit", [1, 2])
def test_every_order_of_checkpoints_loras_and_patches(
    host, draw, install, lora_for, networks, limit
):
    host.models.limit = limit
    install()
    lora = lora_for(host.shared.sd_model.model.diffusion_model)
    states = list(itertools.product(("one", "relative"), ("off", REQUIRED), (False, True)))

    def seen(state):
        checkpoint, mode, with_lora = state
        networks.loaded_networks[:] = [lora] if with_lora else []
        return draw(mode, checkpoint=checkpoint)[0]

    first = {state: seen(state) for state in states}
    assert len({tuple(one[-1].tolist()) for one in first.values()}) == len(states)
    for state in (s for pair in itertools.permutations(states, 2) for s in pair):
        assert torch.equal(seen(state), first[state]), state


def test_the_refiner_is_patched_in_the_very_step_that_loads_it(draw, install, patched):
    patch = install()
    seen, job = draw(REQUIRED, steps=4, refiner=(2, "relative"))
    wanted = [patched(patch), patched(patch, "relative")]
    assert all(torch.equal(one, wanted[step // 2]) for step, one in enumerate(seen))
    assert set(job.patch) == {"one", "relative"}


def test_a_refiner_that_nothing_fits_ends_a_required_request(draw, install, refusal, host):
    install()
    assert refusal(draw, REQUIRED, steps=4, refiner=(2, "stranger")) == "patch_none"
    seen, job = draw(AUTO, checkpoint="one", steps=4, refiner=(2, "stranger"))
    assert torch.equal(seen[-1], plain(host, "stranger"))
    assert [one is None for one in job.patch.values()] == [False, True]


def test_a_delta_that_was_lost_within_a_sampling_is_put_back(host, draw, install, patched):
    patch = install()
    unet = host.shared.sd_model.model.diffusion_model
    draw(REQUIRED)
    with jobs.begun(Protection(patch=REQUIRED)):
        denoiser = host.webui("sd_samplers_cfg_denoiser").CFGDenoiser()
        denoiser(torch.zeros(()))
        unet.fill(host.models.states["one"])
        assert torch.equal(denoiser(torch.zeros(())), patched(patch))


def test_weights_that_were_loaded_past_the_host_are_patched(host, draw, install, patched):
    patch = install()
    draw(REQUIRED)
    host.shared.sd_model.model.diffusion_model.fill(host.models.states["relative"])
    seen, _ = draw(REQUIRED)
    assert torch.equal(seen[0], patched(patch, "relative"))
    assert torch.equal(draw("off")[0][0], plain(host, "relative"))


def test_weights_that_nobody_knows_end_a_request(host, draw, install, refusal):
    install()
    draw(REQUIRED)
    with torch.no_grad():
        host.shared.sd_model.model.diffusion_model.layers()[3][1].weight.mul_(1.5)
    assert refusal(draw, REQUIRED) == "patch_changed"
    assert refusal(draw, NAMED) == "patch_changed"
    _, job = draw(AUTO)
    assert "Something else has changed" in job.notes[0]
    host.models.reload_model_weights(info="one", forced_reload=True)
    _, job = draw(REQUIRED)
    assert job.patch["one"]


def test_what_samples_outside_of_requests_is_protected_by_the_settings(host, install, patched):
    patch = install()
    host.settings.standing = lambda: Protection(patch=REQUIRED)
    assert torch.equal(host.sample()[0], patched(patch))


def test_a_baked_checkpoint_is_left_alone(host, draw, install):
    from safegen_core.apply import apply

    patch = install()
    unet = host.webui("denoiser").Denoiser(host.models.states["one"])
    apply(unet, patch)
    baked = {"model.diffusion_model." + n: t for n, t in unet.state_dict().items()}
    host.models.states["baked"] = {**host.models.states["one"], **baked}
    draw(REQUIRED)
    seen, job = draw(REQUIRED, checkpoint="baked")  # the very weights that were there before
    assert torch.equal(seen[0], unet())
    assert job.patch["baked"]["route"] == weights.BAKED
    assert torch.equal(draw("off")[0][0], unet())
    assert job.patch["baked"]["strength"] == pytest.approx(1, abs=0.01)


def test_a_file_that_was_replaced_is_put_on_anew(draw, install, patched):
    draw(NAMED) if install() else None
    patch = install(seed=5, overwrite=True)
    seen, _ = draw(NAMED)
    assert torch.equal(seen[0], patched(patch))


def test_a_file_that_went_away_is_refused(host, draw, install, refusal):
    install()
    draw(NAMED)
    (host.safegen / NAMED).unlink()
    assert refusal(draw, NAMED) == "file_missing"
    assert refusal(draw, REQUIRED) == "patch_none"
    assert torch.equal(draw(AUTO)[0][0], plain(host))


def test_a_replaced_unet_is_refused(host, draw, install, refusal, monkeypatch):
    install()
    unet = host.webui("sd_unet")
    monkeypatch.setattr(unet, "current_unet", lambda: torch.ones(3))
    assert refusal(draw, REQUIRED) == "patch_replaced"
    assert refusal(draw, NAMED) == "patch_replaced"
    _, job = draw(AUTO)
    assert "TensorRT" in job.notes[0]
    draw("off")


def test_eight_bit_weights_take_the_side_path_and_back(host, draw, install):
    install()
    unet = host.shared.sd_model.model.diffusion_model
    before, job = draw(REQUIRED)
    host.models.reload_model_weights(info="one", forced_reload=True)
    for _, layer in unet.layers():
        layer.to(torch.float8_e4m3fn)
    rounded = unet()
    seen, job = draw(REQUIRED)
    assert job.patch["one"]["route"] == side_path.ROUTE
    assert torch.allclose(seen[0], before[0], atol=0.2)
    assert not torch.allclose(seen[0], rounded, atol=0.05)
    assert torch.equal(draw("off")[0][0], rounded)


def test_nothing_is_done_again_while_nothing_changes(host, draw, install, monkeypatch):
    install()
    draw(REQUIRED)
    monkeypatch.setattr(merging.Merging, "put", None)
    monkeypatch.setattr(weights.choice, "choose", None)
    draw(REQUIRED)
    draw(REQUIRED, steps=5)


@pytest.mark.parametrize("throw_away", [
    lambda model: model.to("meta"),
    lambda model: setattr(model.model.diffusion_model, "_parameters", None),
])  # fmt: skip
def test_a_model_that_was_thrown_away_is_not_listed(host, draw, install, throw_away):
    install()
    host.models.limit = 2
    draw(REQUIRED)
    gone = host.shared.sd_model
    draw(REQUIRED, checkpoint="relative")
    throw_away(gone)
    assert [one["checkpoint"] for one in weights.status()] == ["relative"]
    weights.remove_all()
    assert torch.equal(draw("off")[0][0], plain(host, "relative"))


def test_a_model_that_is_gone_leaves_nothing_behind(host, draw, install):
    install()
    host.models.limit = 2
    draw(REQUIRED)
    draw(REQUIRED, checkpoint="relative")
    assert {one["checkpoint"] for one in weights.status()} == {"one", "relative"}
    assert all(one["holds"] for one in weights.status())
    host.models.loaded.pop(0)
    gc.collect()
    assert [one["checkpoint"] for one in weights.status()] == ["relative"]


def test_verify_and_remove(host, draw, install):
    install()
    model = host.shared.sd_model
    assert weights.verify(model)
    draw(REQUIRED)
    assert weights.verify(model)
    model.model.diffusion_model.fill(host.models.states["one"])
    assert not weights.verify(model)
    weights.ensure(model, Protection(patch=REQUIRED))
    assert weights.verify(model)
    weights.remove(model)
    assert torch.equal(model.model.diffusion_model(), plain(host))


def test_a_model_that_no_patch_can_go_on(host, refusal):
    class Strange:
        pass

    model = Strange()
    assert refusal(weights.ensure, model, Protection(patch=REQUIRED)) == "patch_host"
    with jobs.begun(Protection(patch=AUTO)) as job:
        assert weights.ensure(model, job.protection) is None
        assert "does not know how this host keeps" in job.notes[0]


@pytest.mark.parametrize("kind", ["ForgePatcher", "ComfyPatcher"])
def test_forge_is_patched_before_it_merges(host, install, patched, monkeypatch, kind):
    patch = install()
    forge = host.webui("forge")
    engine = forge.Engine(host.models.states["one"], getattr(forge, kind))
    monkeypatch.setattr(host.shared, "sd_model", engine)
    sampled = []

    def prepare(unet, x):
        unet.load()
        sampled.append(unet)

    with jobs.begun(Protection(patch=REQUIRED)) as job:
        sampling._prepared(prepare, engine.forge_objects.unet, x=None)
        assert torch.equal(engine.forge_objects.unet.model.diffusion_model(), patched(patch))
        assert sampled == [engine.forge_objects.unet]
        assert job.patch["a"]["route"] == patcher.ROUTE
        seen = sampling._denoise(lambda denoiser: 7, SimpleNamespace(step=0))
    assert seen == 7


def test_forge_without_the_merge_is_refused(host, install, monkeypatch, refusal):
    install()
    forge = host.webui("forge")
    engine = forge.Engine(host.models.states["one"])
    monkeypatch.setattr(host.shared, "sd_model", engine)
    with jobs.begun(Protection(patch=REQUIRED)):
        denoiser = SimpleNamespace(step=0)
        assert refusal(sampling._denoise, lambda denoiser: 7, denoiser) == "patch_changed"


def test_a_model_that_forge_loads_within_a_request_is_patched(host, install, patched):
    patch = install()
    forge = host.webui("forge")

    def load():
        return forge.Engine(host.models.states["one"]), True

    engine, _ = sampling._switched(load)
    assert torch.equal(engine.sample(), plain(host))  # no request: nobody asked for anything
    with jobs.begun(Protection(patch=REQUIRED)):
        engine, _ = sampling._switched(load)
        engine.activate()
        assert torch.equal(engine.sample(), patched(patch))


def test_a_host_that_loads_nothing_is_served():
    assert sampling._switched(lambda: None) is None


def test_the_base_of_a_patched_model_is_its_own(host, draw, install):
    install()
    draw(REQUIRED)
    record = weights._records[host.shared.sd_model]
    wanted = Fingerprint.of(host.models.states["one"]).digest
    assert Fingerprint.of(record.way.attention()).digest == wanted
