# SPDX-License-Identifier: GPL-3.0-or-later
"""Encoded prompts, and how a text encoder makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

_AT_ONCE = 64  # prompts in one pass of a text encoder


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts; row 0 is the empty prompt, as the negative branch of sampling sees it.

    Attributes:
        rows: prompt -> row.
        hidden: text encoder states `[N, T, D]`.
        pooled: projected pooled states `[N, P]` of SDXL's second encoder, None for SD 1 and 2.
        time_ids: SDXL's micro-conditioning `[6]`, float32: original height and width, the crop's
            top and left, target height and width, in pixels; None for SD 1 and 2.
    """

    rows: dict[str, int]
    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def kwargs(self, c: torch.Tensor) -> dict[str, Any]:
        """What the UNet wants to be called with for the prompt rows `c`, int64 `[B]`."""
        found: dict[str, Any] = {"encoder_hidden_states": self.hidden[c]}
        if self.pooled is not None and self.time_ids is not None:
            found["added_cond_kwargs"] = {
                "text_embeds": self.pooled[c],
                "time_ids": self.time_ids.expand(len(c), -1),
            }
        return found

    def to(self, device: torch.device, dtype: torch.dtype) -> Prompts:
        """The same prompts elsewhere. Sizes stay float32: a pixel count must not be rounded."""
        return replace(
            self,
            hidden=self.hidden.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            time_ids=None if self.time_ids is None else self.time_ids.to(device),
        )


@torch.no_grad()
def last_layer(
    tokenizer: Any, encoder: Any, texts: Sequence[str], device: torch.device
) -> torch.Tensor:
    """States `[N, T, D]` as `StableDiffusionPipeline.encode_prompt` takes them."""
    masked = getattr(encoder.config, "use_attention_mask", False)
    hidden = []
    for tokens in _batches(tokenizer, texts, device):
        attention = tokens.attention_mask if masked else None
        hidden.append(encoder(tokens.input_ids, attention_mask=attention)[0].cpu())
    return torch.cat(hidden)


@torch.no_grad()
def penultimate_layer(
    tokenizer: Any, encoder: Any, texts: Sequence[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States `[N, T, D]` as `StableDiffusionXLPipeline.encode_prompt` takes them.

    Also the pooled projection `[N, P]`, which only an encoder with a projection has.
    """
    hidden, pooled = [], []
    for tokens in _batches(tokenizer, texts, device):
        found = encoder(tokens.input_ids, output_hidden_states=True)
        hidden.append(found.hidden_states[-2].cpu())
        if found[0].ndim == 2:
            pooled.append(found[0].cpu())
    return torch.cat(hidden), torch.cat(pooled) if pooled else None


def _batches(tokenizer: Any, texts: Sequence[str], device: torch.device) -> Any:
    for start in range(0, len(texts), _AT_ONCE):
        yield tokenizer(
            list(texts[start : start + _AT_ONCE]),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
