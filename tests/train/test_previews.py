# SPDX-License-Identifier: GPL-3.0-or-later
"""Preview sheets: what diffusers' own sampler would draw, base above, patched below."""

from __future__ import annotations

import itertools

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402

from safegen_core.train import config  # noqa: E402
from safegen_core.train.base import BaseModel  # noqa: E402
from safegen_core.train.batches import generator  # noqa: E402
from safegen_core.train.delta import TrainedDelta  # noqa: E402
from safegen_core.train.network import Network  # noqa: E402
from safegen_core.train.previews import Previews  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def previews(base_folder) -> Previews:
    base = BaseModel(config.Base(path=str(base_folder)))
    unet = base.unet(CPU, torch.float32)
    delta = TrainedDelta(unet, config.Delta(), generator(0, "delta"))
    prompts = base.encode(["a red star", "a blue circle"], CPU)
    settings = config.Preview(prompts=("a red star", "a blue circle"), steps=3, cfg=3.0, seed=5)
    return Previews(settings, base, Network(unet, delta, prompts), base.schedule, (4, 4, 4))


def rows(path) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * 12 + 4, 2 * 12 + 4, 3)
    return [
        sheet[4 + 12 * y : 12 + 12 * y, 4 + 12 * x : 12 + 12 * x] for y in (0, 1) for x in (0, 1)
    ]


def test_without_a_delta_both_rows_are_equal_then_only_the_second_changes(previews, tmp_path):
    previews.write(tmp_path / "a.png")
    first = rows(tmp_path / "a.png")
    assert (first[0] == first[2]).all()
    assert (first[1] == first[3]).all()
    with torch.no_grad():
        for parameter in previews.network.delta.parameters().values():
            parameter.add_(0.1)
    previews.write(tmp_path / "b.png")
    second = rows(tmp_path / "b.png")
    assert (second[0] == first[0]).all()
    assert (second[2] != first[2]).any()


def test_sampler_agrees_with_diffusers_ddim(previews):
    """The same timesteps through DDIMScheduler give the same latents."""
    from diffusers import DDIMScheduler

    settings, network = previews.settings, previews.network
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(settings.steps + 1)  # linspace counts both ends
    z = torch.stack(
        [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(5 + i)) for i in range(2)]
    )
    times = scheduler.timesteps.tolist()
    with torch.no_grad():
        for now, then in itertools.pairwise(times):
            t = torch.full((2,), now)
            without = network(z, t, torch.tensor([0, 0]))
            within = network(z, t, torch.tensor([1, 2]))
            predicted = without + settings.cfg * (within - without)
            a_now, a_then = scheduler.alphas_cumprod[now], scheduler.alphas_cumprod[then]
            clean = (z - (1 - a_now).sqrt() * predicted) / a_now.sqrt()
            z = a_then.sqrt() * clean + (1 - a_then).sqrt() * predicted
    torch.testing.assert_close(previews._latents(), z, rtol=1e-4, atol=1e-4)
