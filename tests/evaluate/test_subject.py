# SPDX-License-Identifier: GPL-3.0-or-later
"""A pipeline taken apart does what the pipeline itself does, and leaves it alone."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from safegen_core.errors import SafeGenError  # noqa: E402
from safegen_core.evaluate.subject import SAMPLERS, Subject, joined  # noqa: E402
from safegen_core.guide import guide  # noqa: E402
from safegen_core.lab.dataset import draw_world  # noqa: E402
from safegen_core.lab.model import BASE, load_pipeline  # noqa: E402

TEXTS = ["a red striped star at night", "a blue circle"]
SEEDS = [3, 4]
STEPS = 4


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


@pytest.fixture(scope="module")
def xl_pipeline(pipeline):
    """A tiny SDXL of random weights, with the lab's words."""
    torch.manual_seed(0)
    tokenizer = pipeline.tokenizer

    def encoder(kind, width):
        return getattr(transformers, kind)(
            transformers.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).eval()

    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=56,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    ).eval()
    made = diffusers.StableDiffusionXLPipeline(
        vae=pipeline.vae,
        unet=unet,
        text_encoder=encoder("CLIPTextModel", 24),
        text_encoder_2=encoder("CLIPTextModelWithProjection", 32),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def like(pipeline, scheduler, kind="StableDiffusionPipeline", **changes):
    """The same parts under another scheduler of diffusers."""
    schedule = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **changes)
    made = getattr(diffusers, kind)(
        **{**pipeline.components, "scheduler": schedule}, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def called(pipeline, cfg, **given):
    """What the pipeline itself draws, uint8."""
    drawn = pipeline(
        TEXTS,
        generator=generators(),
        guidance_scale=cfg,
        num_inference_steps=STEPS,
        output_type="np",
        **given,
    )
    return (torch.from_numpy(drawn.images) * 255).round().byte()


def drawn(subject, cfg, **given):
    z = subject.sample(
        subject.encode(TEXTS), subject.noise(SEEDS), cfg, **{"steps": STEPS, **given}
    )
    return subject.decode(z)


def apart(a, b):
    return (a.int() - b.int()).abs().max()


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_draws_what_the_pipeline_draws(pipeline, sampler, cfg, prediction):
    own = like(pipeline, SAMPLERS[sampler], prediction_type=prediction)
    wanted = called(own, cfg, height=64, width=64)
    subject = Subject(like(pipeline, "DDIMScheduler", prediction_type=prediction))
    assert subject.prediction == prediction
    assert apart(drawn(subject, cfg, sampler=sampler), wanted) <= 1
    assert wanted.float().std() > 10


def test_it_leads_away_from_a_negative_prompt_as_the_pipeline_does(pipeline):
    own = like(pipeline, SAMPLERS["ddim"])
    wanted = called(own, 5.0, height=64, width=64, negative_prompt=["a green square"] * len(TEXTS))
    subject = Subject(own)
    assert apart(drawn(subject, 5.0, negative="a green square"), wanted) <= 1
    assert apart(drawn(subject, 5.0), wanted) > 10


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_a_picture_it_draws_what_the_pipeline_draws(pipeline, sampler, strength):
    own = like(pipeline, SAMPLERS[sampler], "StableDiffusionImg2ImgPipeline")
    pictures = draw_world(2, seed=5).images
    given = pictures.permute(0, 3, 1, 2).float() / 255
    wanted = called(own, 5.0, image=given, strength=strength)
    subject = Subject(pipeline)
    draws = generators()  # the pipeline's generators draw the posterior first, then the noise
    start = torch.cat(
        [
            pipeline.vae.encode(x[None] * 2 - 1, return_dict=False)[0].sample(draw)
            for x, draw in zip(given, draws, strict=True)
        ]
    ).detach() * pipeline.vae.config["scaling_factor"]  # fmt: skip
    noise = torch.cat([torch.randn(1, *subject.latent, generator=draw) for draw in draws])
    z = subject.sample(
        subject.encode(TEXTS), noise, 5.0, sampler=sampler, steps=STEPS, start=start,
        strength=strength,
    )  # fmt: skip
    assert apart(subject.decode(z), wanted) <= 1


def test_with_nothing_to_do_again_the_picture_stays(pipeline):
    subject = Subject(pipeline)
    start = subject.latents(draw_world(2, seed=5).images)
    z = subject.sample(
        subject.encode(TEXTS), subject.noise(SEEDS), 5.0, steps=STEPS, start=start, strength=0.1
    )
    assert torch.equal(z, start)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sdxl_is_drawn_as_its_pipeline_does(xl_pipeline, sampler, cfg):
    schedule = getattr(diffusers, SAMPLERS[sampler]).from_config(xl_pipeline.scheduler.config)
    own = diffusers.StableDiffusionXLPipeline(
        **{**xl_pipeline.components, "scheduler": schedule}, add_watermarker=False
    )
    own.set_progress_bar_config(disable=True)
    subject = Subject(xl_pipeline)
    assert apart(drawn(subject, cfg, sampler=sampler), called(own, cfg, height=32, width=32)) <= 1


def test_the_empty_prompt_is_the_negative_branchs(pipeline, xl_pipeline):
    cpu = torch.device("cpu")
    mixed = ["", TEXTS[0], ""]
    found = Subject(pipeline).encode(mixed)
    prompt, negative = pipeline.encode_prompt(TEXTS[0], cpu, 1, True, "")
    torch.testing.assert_close(found.hidden[1:2], prompt)
    torch.testing.assert_close(found.hidden[[0, 2]], negative.expand(2, -1, -1))
    assert found.pooled is None

    found = Subject(xl_pipeline, size=48).encode(mixed)
    hidden, negative, pooled, negative_pooled = xl_pipeline.encode_prompt(TEXTS[0], device=cpu)
    torch.testing.assert_close(found.hidden[1:2], hidden)
    torch.testing.assert_close(found.pooled[1:2], pooled)
    torch.testing.assert_close(found.hidden[:1], negative)
    torch.testing.assert_close(found.pooled[2:], negative_pooled)
    assert found.time_ids.tolist() == [[48, 48, 0, 0, 48, 48]] * 3


def test_contexts_are_cut_and_joined_row_by_row(xl_pipeline):
    found = Subject(xl_pipeline).encode(TEXTS)
    again = joined(found[1:], found[[0]])
    assert len(again) == 2
    for part in ("hidden", "pooled", "time_ids"):
        assert torch.equal(getattr(again, part), getattr(found, part).flip(0))
    assert torch.equal(found[:1].expand(3).hidden[2], found.hidden[0])


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
        ("UniPCMultistepScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("PNDMScheduler", {}),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_samplers_name_means_the_same_whatever_the_pipeline_runs_with(
    pipeline, scheduler, changes, sampler
):
    subject = Subject(like(pipeline, scheduler, **changes))
    plain = Subject(pipeline)
    assert torch.equal(subject.abar, plain.abar)
    ours, own = subject.scheduler(sampler), plain.scheduler(sampler)
    assert {**ours.config, "_use_default_values": 0} == {**own.config, "_use_default_values": 0}
    ours.set_timesteps(20)
    own.set_timesteps(20)
    assert torch.equal(ours.timesteps, own.timesteps)


def test_latents_are_not_clipped_for_want_of_a_setting(pipeline):
    config = {k: pipeline.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    fresh = diffusers.EulerDiscreteScheduler(
        **config, steps_offset=1, timestep_spacing="leading"
    )  # fmt: skip
    other = like(pipeline, "DDIMScheduler")
    other.scheduler = fresh
    assert Subject(other).scheduler("ddim").config["clip_sample"] is False
    assert (Subject(other).abar - Subject(pipeline).abar).abs().max() < 1e-6


def test_a_picture_depends_on_its_own_row_only(pipeline):
    whole, one_by_one = Subject(pipeline), Subject(pipeline, at_once=1)
    done = []
    together = drawn(whole, 5.0, on_batch=done.append)
    assert apart(drawn(one_by_one, 5.0, on_batch=done.append), together) <= 1
    assert done == [2, 1, 1]


def test_a_perfect_network_would_find_the_picture(pipeline):
    z, eps = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10, 500, 990])
    for prediction in ("epsilon", "v_prediction"):
        subject = Subject(like(pipeline, "DDIMScheduler", prediction_type=prediction))
        z_t, out = subject.noised(z, eps, t), subject.truth(z, eps, t)
        scheduler = subject.scheduler("ddim")
        scheduler.set_timesteps(1000)
        for k in range(3):
            _, found = scheduler.step(out[k], int(t[k]), z_t[k], return_dict=False)
            torch.testing.assert_close(found, z[k], atol=1e-3, rtol=1e-3)


def test_a_half_precision_vae_is_given_back_as_it_was(pipeline):
    import copy

    own = like(pipeline, "DDIMScheduler")
    own.vae = copy.deepcopy(pipeline.vae).half()
    own.vae.register_to_config(force_upcast=True)
    before = {name: tensor.clone() for name, tensor in own.vae.state_dict().items()}
    pictures = draw_world(2, seed=5).images
    subject, plain = Subject(own), Subject(pipeline)
    assert (
        apart(subject.decode(subject.latents(pictures)), plain.decode(plain.latents(pictures))) < 4
    )
    after = own.vae.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert own.vae.dtype == torch.float16


def test_pictures_survive_the_way_through_latents(pipeline):
    subject = Subject(pipeline)
    pictures = draw_world(4, seed=5).images
    back = subject.decode(subject.latents(pictures))
    assert (back.float() - pictures.float()).square().mean().sqrt() < 20


def test_what_cannot_be_done_is_refused(pipeline, refusal):
    subject = Subject(pipeline)
    assert refusal(subject.scheduler, "dmp++") == "config_unknown"
    assert refusal(drawn, subject, 1.0, guide=guide("weak", "a star")) == "config_range"
    other = like(pipeline, "DDIMScheduler", prediction_type="sample")
    with pytest.raises(SafeGenError, match="sample"):
        Subject(other)


def test_the_gradient_reaches_the_text_only_if_asked(pipeline):
    subject = Subject(pipeline)
    assert subject.encode(TEXTS, gradient=True).hidden.requires_grad
    assert not subject.encode(TEXTS).hidden.requires_grad


def test_the_shipped_base_is_read_from_its_folder():
    assert Subject(diffusers.StableDiffusionPipeline.from_pretrained(BASE)).size == 64
