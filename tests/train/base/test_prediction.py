# SPDX-License-Identifier: GPL-3.0-or-later
"""What a base predicts: said by its file or its configs, or seen in the network."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.lab.model import BASE  # noqa: E402
from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel, prediction  # noqa: E402

CPU = torch.device("cpu")
V_PRED, ZTSNR = {"v_pred": torch.empty(0)}, {"ztsnr": torch.empty(0)}


def schedule_of(path, configs="", **settings):
    return BaseModel(config.Base(path=str(path), config=str(configs), **settings)).schedule


@pytest.mark.parametrize(
    ("marks", "metadata", "predicts"),
    [
        ({}, None, "epsilon"),
        (V_PRED, None, "v_prediction"),
        ({}, {"modelspec.predict_key": "v"}, "v_prediction"),
        ({}, {"modelspec.predict_key": "epsilon"}, "epsilon"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"ss_v_parameterization": "True"}, "v_prediction"),
        ({}, {"ss_v_parameterization": "False"}, "epsilon"),
    ],
)
def test_a_file_says_what_it_predicts(xl_folder, xl_file, marks, metadata, predicts):
    schedule = schedule_of(xl_file(marks, metadata), xl_folder)
    assert schedule.prediction == predicts
    assert schedule.abar[-1] > 1e-3


@pytest.mark.parametrize(
    ("marks", "metadata"), [(V_PRED | ZTSNR, None), (V_PRED, {"ss_zero_terminal_snr": "True"})]
)
def test_zero_terminal_snr_is_diffusers_rescaling(xl_folder, xl_file, marks, metadata):
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    found = schedule_of(xl_file(marks, metadata), xl_folder)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    wanted = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(found.abar, wanted)
    assert found.abar[-1] < 1e-7
    assert found.abar[0] == pytest.approx(1 - 0.00085, abs=1e-6)


def test_the_settings_have_the_last_word(base_folder, xl_folder, xl_file):
    assert schedule_of(base_folder, prediction="v_prediction").prediction == "v_prediction"
    assert schedule_of(xl_file(V_PRED), xl_folder, prediction="epsilon").prediction == "epsilon"


@pytest.mark.parametrize(
    ("marks", "metadata", "code"),
    [
        (ZTSNR, None, "model_prediction"),
        ({"edm_mean": torch.zeros(4)}, None, "model_refused"),
        ({"edm_vpred.sigma_max": torch.zeros(1)}, None, "model_refused"),
        ({}, {"modelspec.prediction_type": "flow\x1b[2J"}, "model_refused"),
    ],
)
def test_what_the_trainer_cannot_compute_with(xl_folder, xl_file, marks, metadata, code):
    with pytest.raises(SafeGenError) as error:
        schedule_of(xl_file(marks, metadata), xl_folder)
    assert error.value.code == code
    assert "\x1b" not in error.value.message


class Like:
    """A UNet that predicts something made of what another one predicts."""

    def __init__(self, unet, predict):
        self.unet, self.predict = unet, predict
        self.config, self.device, self.dtype = unet.config, unet.device, unet.dtype

    def __call__(self, z, t, **kwargs):
        return (self.predict(z, self.unet(z, t, **kwargs)[0]),)


@pytest.fixture(scope="module")
def miniature():
    """The lab's trained epsilon-network."""
    base = BaseModel(config.Base(path=str(BASE)))
    return base.unet(CPU, torch.float32), base.encode([], CPU), base.schedule


def test_a_trained_network_shows_what_it_predicts(miniature):
    unet, prompts, schedule = miniature
    last = torch.tensor([len(schedule) - 1])
    a, s = schedule.a(last), schedule.s(last)

    def v(z, eps):  # the same network, asked for v
        return a * eps - s * (z - s * eps) / a

    assert prediction.seen(unet, prompts, len(schedule)) == "epsilon"
    assert prediction.seen(Like(unet, v), prompts, len(schedule)) == "v_prediction"


@pytest.mark.parametrize("predict", [lambda z, e: z + 1.2 * e.flip(-1), lambda z, e: e * torch.nan])
def test_an_unclear_network_is_not_guessed_at(miniature, predict):
    unet, prompts, schedule = miniature
    assert prediction.seen(Like(unet, predict), prompts, len(schedule)) is None


def test_an_inpainting_network_is_shown_a_mask():
    shown = []

    def unet(z, t, **kwargs):
        shown.append(z)
        return (z[:, :4],)

    unet.config = SimpleNamespace(sample_size=8, in_channels=9, out_channels=4)
    unet.device, unet.dtype = CPU, torch.float32
    from safegen_core.train.base import Prompts

    prompts = Prompts({"": 0}, torch.zeros(1, 8, 4))
    assert prediction.seen(unet, prompts, 1000) == "epsilon"
    assert shown[0][:, 4].eq(1).all()
    assert shown[0][:, 5:].eq(0).all()


def without_a_word(folder):
    """A base of a family that may predict either, whose configs do not say which."""
    base = BaseModel(config.Base(path=str(folder)))
    base.family = dataclasses.replace(base.family, default_prediction="unknown")
    base._said = None
    return base


def test_what_is_not_said_is_looked_at():
    assert without_a_word(BASE).schedule.prediction == "epsilon"


def test_what_cannot_be_seen_is_asked_for(monkeypatch):
    monkeypatch.setattr(prediction, "seen", lambda *args: None)
    with pytest.raises(SafeGenError) as error:
        _ = without_a_word(BASE).schedule
    assert error.value.code == "model_prediction"
    assert "base.prediction" in error.value.message
