# SPDX-License-Identifier: GPL-3.0-or-later
"""Which family a model belongs to, told from names and shapes alone; what is none is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import ModelError
from .families import FAMILIES, Family, Layout, Prediction


@dataclass(frozen=True)
class Detected:
    """What a header says about a model.

    Attributes:
        family: its family.
        layout: which spelling its UNet uses.
        prefix: what stands before UNet names, such as `model.diffusion_model.` or nothing.
        variants: traits that matter to a host or a report: `inpainting`, `edit` (8 input channels),
            `depth`, `unclip`, `edm`, `animatediff`, `controlnet`, `ema` (a second, unpatched copy
            of the weights in the file), `scaled-fp8` (weights mean nothing without their scales).
        prediction: what the UNet predicts; a convention of the family unless the file says it, and
            `unknown` where headers cannot tell (Stable Diffusion 2).
    """

    family: Family
    layout: Layout
    prefix: str
    variants: frozenset[str]
    prediction: Prediction

    def key(self, canonical: str) -> str:
        """The name a canonical tensor has in this model."""
        spec = self.family.specs[canonical]
        return self.prefix + (spec.ldm if self.layout == "ldm" else spec.name)

    def canonical(self, key: str) -> str | None:
        """The canonical name of one of this model's tensors, None if it is not self-attention."""
        if not key.startswith(self.prefix):
            return None
        return self.family.canonical(key[len(self.prefix) :])


_UNET = re.compile(
    r"^(?P<prefix>(?:.*\.)?)"
    r"(?P<rest>(?:(?P<ldm>input_blocks\.\d+\.1|middle_block\.1|output_blocks\.\d+\.1)"
    r"|(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+)"
    r"\.transformer_blocks\.\d+\.attn1\.(?:to_q|to_k|to_v|to_out\.0)\.(?:weight|bias))$"
)
# Each kind is recognised by any one of the groups; all substrings of a group must be present.
_Kinds = tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
_LOOKALIKES: _Kinds = (  # these contain a whole image UNet, so they are refused before matching
    (
        "a video model (Stable Video Diffusion)",
        ((".time_stack.",), (".temporal_transformer_blocks.",), (".time_mix_blocks.",)),
    ),
    ("a UNet with fused attention projections; unfuse it first", ((".attn1.to_qkv.",),)),
)
_OTHERS: _Kinds = (
    (
        "a LoRA file, not a model",
        (
            (".lora_up.",),
            (".lora_down.",),
            (".lora_A.",),
            (".lora_B.",),
            (".lora.up.",),
            (".hada_w1_",),
            (".lokr_w",),
            (".diff\n",),
        ),
    ),
    (
        "a ControlNet",
        (
            ("zero_convs.",),
            ("controlnet_cond_embedding.",),
            ("controlnet_down_blocks.",),
            ("input_hint_block.",),
        ),
    ),
    (
        "a standalone AnimateDiff motion module",
        ((".motion_modules.",), (".temporal_transformer.",)),
    ),
    ("Hunyuan Video", (("individual_token_refiner.",),)),
    ("HiDream", (("double_stream_blocks.",),)),
    ("Flux", (("double_blocks.0.img_attn.",), ("single_transformer_blocks.",))),
    ("Stable Diffusion 3", (("joint_blocks.0.context_block.",), (".attn.add_q_proj.",))),
    ("Hunyuan-DiT", (("mlp_t5.",), ("text_embedding_padding",))),
    ("LTXV", (("patchify_proj.",), ("caption_projection.", "transformer_blocks.0.attn1.norm_q."))),
    ("PixArt", (("adaln_single.",), ("t_block.1.",))),
    ("Wan", (("patch_embedding.", "head.modulation"), ("condition_embedder.time_proj.",))),
    ("Stable Cascade", (("clip_txt_mapper.",), ("clip_mapper.",), ("clf.1.",))),
    ("AuraFlow", (("double_layers.",), ("joint_transformer_blocks.",))),
    (
        "a text encoder without an image model",
        (
            ("text_model.encoder.layers.",),
            ("encoder.block.0.layer.",),
            ("cond_stage_model.",),
            ("conditioner.embedders.",),
        ),
    ),
    (
        "a VAE without an image model",
        (("first_stage_model.",), ("\ndecoder.",), ("\nencoder.conv_in",)),
    ),
)


def detect(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None
) -> Detected:
    """Tell a model's family from tensor names and shapes alone; no weight is read.

    Args:
        shapes: tensor name -> shape, as a safetensors header or a state dict gives them.
        metadata: the header's string metadata, if any.

    Raises:
        ModelError: `model_refused` for a recognised architecture that SafeGen does not patch,
            `model_incomplete` when most but not all self-attention tensors of a family are there,
            `model_unknown` for anything else.
    """
    metadata = metadata or {}
    if "safegen.format" in metadata:
        raise ModelError("model_refused", "This is a SafeGen patch, not a model.")
    names = "\n" + "\n".join(shapes) + "\n"
    _refuse(names, _LOOKALIKES)

    places: dict[tuple[Layout, str], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if found := _UNET.match(name):
            layout: Layout = "ldm" if found["ldm"] else "diffusers"
            here = places.setdefault((layout, found["prefix"]), {})
            here[found["rest"]] = tuple(shape)

    nearest: tuple[int, ModelError | None] = (0, None)
    for (layout, prefix), here in places.items():
        for candidate in FAMILIES.values():
            wanted = {
                (spec.ldm if layout == "ldm" else spec.name): spec.shape
                for spec in candidate.tensors()
            }
            context = _context(shapes, candidate, layout, prefix)
            matched = sum(here.get(name) == shape for name, shape in wanted.items())
            if here == wanted and context == candidate.context:
                return Detected(
                    candidate,
                    layout,
                    prefix,
                    _variants(names, shapes, layout, prefix, candidate),
                    _prediction(candidate, shapes, metadata),
                )
            if 2 * matched >= len(wanted) and len(here) <= len(wanted) and matched > nearest[0]:
                nearest = (matched, _shortfall(candidate, matched, len(wanted), context))
    _refuse(names, _OTHERS)
    if nearest[1] is not None:
        raise nearest[1]
    raise ModelError(
        "model_unknown",
        "No known Stable Diffusion UNet is in this model. SafeGen patches "
        + ", ".join(f.title for f in FAMILIES.values())
        + ".",
    )


def _refuse(names: str, kinds: _Kinds) -> None:
    for title, groups in kinds:
        if any(all(part in names for part in group) for group in groups):
            raise ModelError(
                "model_refused",
                f"This is {title}. SafeGen patches the self-attention of "
                "Stable Diffusion 1, 2 and XL image models only.",
            )


def _context(
    shapes: Mapping[str, tuple[int, ...]], candidate: Family, layout: Layout, prefix: str
) -> int | None:
    first = candidate.modules[0]
    path = first.ldm if layout == "ldm" else first.diffusers
    shape = shapes.get(f"{prefix}{path.removesuffix('attn1')}attn2.to_k.weight")
    return shape[1] if shape is not None and len(shape) == 2 else None


def _shortfall(candidate: Family, matched: int, wanted: int, context: int | None) -> ModelError:
    if matched < wanted:
        return ModelError(
            "model_incomplete",
            f"This looks like {candidate.title}, but only {matched} of {wanted} self-attention "
            "tensors are there with the right shape: the file is incomplete, or an architecture "
            "SafeGen does not know. Download it again.",
        )
    if context is None:
        return ModelError(
            "model_incomplete",
            "Self-attention is complete, but the cross-attention (attn2) that tells Stable "
            "Diffusion 1 from 2 is missing: give the whole UNet.",
        )
    return ModelError(
        "model_unknown",
        f"Self-attention fits {candidate.title}, but the text width is {context} and not "
        f"{candidate.context}: an architecture SafeGen does not know.",
    )


def _variants(
    names: str,
    shapes: Mapping[str, tuple[int, ...]],
    layout: Layout,
    prefix: str,
    candidate: Family,
) -> frozenset[str]:
    stem = "input_blocks.0.0.weight" if layout == "ldm" else "conv_in.weight"
    conv = shapes.get(prefix + stem, ())
    by_channels = {9: "inpainting", 8: "edit", 5: "depth"}
    ours = candidate.name == "lab"  # its latents have 8 channels by design
    known = len(conv) == 4 and conv[1] in by_channels and not ours
    found = {by_channels[conv[1]]} if known else set()
    traits = {
        "animatediff": ".motion_modules." in names or ".temporal_transformer." in names,
        "controlnet": "\ncontrol_model." in names,
        "ema": "\nmodel_ema." in names,
        "edm": "\nedm_mean\n" in names,
        "scaled-fp8": any(
            mark in names for mark in ("scaled_fp8\n", ".scale_weight\n", ".weight_scale\n")
        ),
        "unclip": candidate.name == "sd2"
        and (f"{prefix}label_emb." in names or f"{prefix}class_embedding." in names),
    }
    return frozenset(found | {trait for trait, present in traits.items() if present})


def _prediction(candidate: Family, names: Iterable[str], metadata: Mapping[str, str]) -> Prediction:
    said = metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction") or "v_pred" in names:
        return "v_prediction"
    if said == "epsilon":
        return "epsilon"
    if said or "edm_mean" in names:
        return "unknown"
    return candidate.default_prediction
