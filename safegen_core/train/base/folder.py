# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a base model in a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import FileError
from .config_folder import Configs
from .loading import local, read_config


class Folder:
    """A diffusers folder: weights, configs and tokenizers lie side by side.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.configs = Configs(path)

    def unet_config(self) -> dict[str, Any]:
        """The UNet's configuration."""
        return self.configs.of("unet")

    @property
    def empty_is_zeros(self) -> bool:
        """Whether diffusers samples this SDXL with zeros where no negative prompt is given."""
        index = self.path / "model_index.json"
        said = read_config(index) if index.is_file() else {}
        return bool(said.get("force_zeros_for_empty_prompt", True))

    def network(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        """Load the UNet or the VAE; `kind` is its diffusers class."""
        return self._load(kind, part, torch_dtype=dtype)

    def text_encoder(self, part: str) -> Any:
        """Load a text encoder in float32."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        # No dtype here: transformers' keyword for it changed its name.
        return self._load(kind, part).float()

    def _load(self, kind: Any, part: str, **keywords: Any) -> Any:
        files = [file.name for file in (self.path / part).glob("*.safetensors")]
        half = files and all(".fp16." in name for name in files)
        network, info = local(
            kind.from_pretrained,
            self.path,
            subfolder=part,
            local_files_only=True,
            use_safetensors=True,
            variant="fp16" if half else None,
            output_loading_info=True,
            **keywords,
        )
        # Both libraries fill what is missing with random numbers. transformers 4 finds none of the
        # names that transformers 5 gives a text encoder it saves.
        if missing := sorted(info["missing_keys"]):
            raise FileError(
                "file_base",
                f"{self.path / part} lacks {len(missing)} tensors, {missing[0]} for one: it is "
                "incomplete, or saved by a newer release of transformers than this one",
            )
        return network
