# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a base model in one .safetensors checkpoint, in the original layout.

Only the tensors of the part that is wanted are read, each straight into the dtype that is wanted,
so a model never lies in memory twice or in a wider dtype than asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ...errors import FileError
from ...header import printable
from ...recognise import Detected
from ...storage import Weights
from .config_folder import Configs
from .loading import local

_VAE = ("first_stage_model.", "vae.")
# CLIP keeps the names transformers gives it; OpenCLIP (`.model.`) has names of its own.
_TEXT = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_OPEN_CLIP = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "encoder.layers."),
    ("ln_final.", "final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


class SingleFile:
    """A whole checkpoint: UNet, autoencoder and text encoders.

    Args:
        weights: the open file.
        detected: what its header says.
        configs: what its parts are.

    Raises:
        FileError: `file_base` for a file without an autoencoder or a text encoder.
    """

    empty_is_zeros = False  # single files are sampled by hosts that encode an empty negative prompt

    def __init__(self, weights: Weights, detected: Detected, configs: Configs) -> None:
        self.weights, self.detected, self.configs = weights, detected, configs
        self._vae = self._prefix("autoencoder", _VAE)
        self._text = {
            part: self._prefix(part.replace("_", " "), _TEXT[part])
            for part in configs.text_encoders
        }

    def unet_config(self) -> dict[str, Any]:
        """The UNet's configuration, with as many input channels as the file's UNet has."""
        stem = "input_blocks.0.0.weight" if self.detected.layout == "ldm" else "conv_in.weight"
        shape = self.weights.shapes.get(self.detected.prefix + stem, ())
        config = self.configs.of("unet")
        return config | {"in_channels": shape[1]} if len(shape) == 4 else config

    def network(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        """Load the UNet or the VAE; `kind` is its diffusers class."""
        keywords = {}
        if part == "unet":
            layout = "model.diffusion_model." if self.detected.layout == "ldm" else ""
            tensors = self._tensors(self.detected.prefix, dtype, layout)
            keywords["in_channels"] = self.unet_config()["in_channels"]
        else:
            tensors = self._tensors(self._vae, dtype, _VAE[0])
        network = local(
            kind.from_single_file,
            tensors,
            config=str(self.configs.folder),
            subfolder=part,
            local_files_only=True,
            torch_dtype=dtype,
            **keywords,
        )
        # diffusers leaves what the file lacks without memory, and says nothing.
        self._require(name for name, tensor in network.state_dict().items() if tensor.is_meta)
        return network

    def text_encoder(self, part: str) -> Any:
        """Load a text encoder in float32."""
        from accelerate import init_empty_weights
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kind: Any = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        with init_empty_weights():
            encoder = kind(CLIPTextConfig(**self.configs.of(part)))
        prefix = self._text[part]
        tensors = self._tensors(prefix, torch.float32)
        if prefix.endswith(".model."):
            tensors = _from_open_clip(tensors)
        wanted = encoder.state_dict()
        state = {}
        for name, tensor in tensors.items():
            # Whether the transformer is a part of its own depends on file, class and transformers.
            bare = name.removeprefix("text_model.")
            for spelt in (bare, f"text_model.{bare}"):
                if spelt in wanted:
                    state[spelt] = tensor
        self._require(wanted.keys() - state.keys())
        try:
            encoder.load_state_dict(state, strict=False, assign=True)
        except RuntimeError as error:
            raise FileError(
                "file_base",
                f"cannot load {part} from {self.weights.path}: {printable(error, 300)}",
            ) from error
        return encoder

    def _tensors(
        self, prefix: str, dtype: torch.dtype, instead: str = ""
    ) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, spelt with another, in `dtype` as far as they are floats."""
        found = {}
        for name in self.weights.in_data_order():
            if name.startswith(prefix):
                tensor = self.weights.load(name)
                found[instead + name[len(prefix) :]] = (
                    tensor.to(dtype) if tensor.is_floating_point() else tensor
                )
        return found

    def _prefix(self, title: str, candidates: Sequence[str]) -> str:
        for prefix in candidates:
            if any(name.startswith(prefix) for name in self.weights.shapes):
                return prefix
        raise FileError(
            "file_base",
            f"{self.weights.path} holds no {title}: give a whole checkpoint (UNet, autoencoder and "
            "text encoders in one file) or a diffusers folder",
        )

    def _require(self, missing: Iterable[str]) -> None:
        if names := sorted(missing):
            raise FileError(
                "file_base",
                f"{self.weights.path} lacks {len(names)} tensors, {names[0]} for one: the file is "
                "incomplete, or base.config describes another model",
            )


def _from_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's text tower with the names of transformers' CLIP.

    Its attention has one matrix for queries, keys and values, and its projection is transposed.
    """
    found = {}
    for name, tensor in tensors.items():
        if name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
            continue
        for theirs, ours in _OPEN_CLIP:
            name = name.replace(theirs, ours)
        if ".attn.in_proj_" in name:
            stem, leaf = name.split(".attn.in_proj_")
            for side, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{stem}.self_attn.{side}_proj.{leaf}"] = third
        else:
            found[name] = tensor
    return found
