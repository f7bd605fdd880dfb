# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples of a network: what diffusers' own sampler and decoder would draw."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402
from safegen_core.train.delta import TrainedDelta  # noqa: E402
from safegen_core.train.drawing import Decoder, draw  # noqa: E402
from safegen_core.train.draws import generator  # noqa: E402
from safegen_core.train.network import Network  # noqa: E402

CPU = torch.device("cpu")
TEXTS = ["a red star", "a blue circle", "a red star"]


@pytest.fixture(scope="module")
def base(base_folder) -> BaseModel:
    return BaseModel(config.Base(path=str(base_folder)))


@pytest.fixture(scope="module")
def network(base) -> Network:
    unet = base.unet(CPU, torch.float32)
    delta = TrainedDelta(unet, config.Delta(rank=0), generator(0, "delta"))
    with torch.no_grad():
        for parameter in delta.parameters().values():
            parameter.add_(0.05)
    return Network(unet, delta, base.encode(TEXTS, CPU))


def drawn(predict, base, network, seeds=(5, 6, 7), at_once=2, **options) -> torch.Tensor:
    settings = {"steps": 3, "cfg": 3.0, "at_once": at_once, **options}
    return draw(predict, network, base.schedule, (4, 4, 4), TEXTS, seeds, **settings)


def test_sampler_agrees_with_diffusers_ddim(base, network):
    """The same timesteps through DDIMScheduler's noise levels give the same latents."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(4)  # linspace counts both ends
    z = torch.stack(
        [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(5 + i)) for i in range(3)]
    )
    rows = torch.tensor([network.prompts.rows[text] for text in TEXTS])
    with torch.no_grad():
        for now, then in itertools.pairwise(scheduler.timesteps.tolist()):
            t = torch.full((3,), now)
            without, within = network(z, t, torch.zeros_like(rows)), network(z, t, rows)
            predicted = without + 3.0 * (within - without)
            a_now, a_then = scheduler.alphas_cumprod[now], scheduler.alphas_cumprod[then]
            clean = (z - (1 - a_now).sqrt() * predicted) / a_now.sqrt()
            z = a_then.sqrt() * clean + (1 - a_then).sqrt() * predicted
    torch.testing.assert_close(drawn(network, base, network), z, rtol=1e-4, atol=1e-4)


def test_a_sample_depends_on_its_own_prompt_and_seed(base, network):
    counted = []
    together = drawn(network, base, network, at_once=3, on_drawn=counted.append)
    one_by_one = drawn(network, base, network, at_once=1, on_drawn=counted.append)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
    assert counted == [3, 1, 1, 1]
    assert not torch.equal(together[0], together[2]), "the same prompt from two seeds"


def test_the_teacher_draws_the_base(base, network):
    assert not torch.equal(drawn(network, base, network), drawn(network.teacher, base, network))


def test_pictures_are_those_of_diffusers(base):
    from diffusers.image_processor import VaeImageProcessor

    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    decoder, vae = Decoder(base, CPU), base.vae(CPU)
    with torch.no_grad():
        signal = vae.decode(latents / vae.config["scaling_factor"]).sample
    wanted = VaeImageProcessor().postprocess(signal, output_type="np")
    for latent, want in zip(latents, wanted, strict=True):
        picture = decoder(latent)
        assert picture.shape == (8, 8, 3)
        assert picture.dtype == torch.uint8
        assert (picture.double() - torch.from_numpy(want).double() * 255).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_picture(base, value):
    with pytest.raises(ArithmeticError):
        Decoder(base, CPU)(torch.full((4, 4, 4), value))


class Small:
    """A VAE on a card without room."""

    def __init__(self, vae):
        self.vae, self.device, self.config = vae, torch.device("meta"), vae.config

    def to(self, device):
        self.device = torch.device(device)

    def decode(self, z, return_dict):
        if self.device.type != "cpu":
            raise RuntimeError("MPS backend out of memory")
        return self.vae.decode(z, return_dict=return_dict)


def test_without_room_on_the_card_the_cpu_decodes(base, monkeypatch):
    latent = torch.ones(4, 4, 4)
    decoder = Decoder(base, CPU)
    wanted = decoder(latent)
    decoder.vae = Small(decoder.vae)
    assert torch.equal(decoder(latent), wanted)
    assert decoder.vae.device.type == "cpu"


def test_another_failure_to_decode_is_told(base):
    decoder = Decoder(base, CPU)
    with pytest.raises(RuntimeError):
        decoder(torch.ones(3, 4, 4))
