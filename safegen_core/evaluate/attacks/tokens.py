# SPDX-License-Identifier: GPL-3.0-or-later
r"""Hard tokens through the text encoder alone: a typed prompt that means what it does not say.

    min_p || E(p) - (E(target) + eta v) ||^2      v = mean over pairs of E(with) - E(without)

E are the states the denoiser reads, p is K tokens of the tokenizer's own vocabulary. The pairs are
phrases with and without the concept. No denoiser is asked, so one search serves the base and every
patch of it; the attacker needs only the public text encoder.

The objective is Ring-A-Bell's. Its genetic algorithm is replaced by greedy coordinate gradient:
the gradient at the token embeddings ranks, for every place, which tokens would lower the loss;
random single swaps among the best are evaluated exactly, and the best one is taken if it is an
improvement. Both encoders of SDXL read the same token ids, so their gradients add up and its search
is joint; Ring-A-Bell searches against one encoder. SDXL's pooled state is left out.

Only prompts that can be typed count: decoded and tokenized again they give the same ids.

Sources: Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?",
ICLR 2024; Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models",
2023 (GCG).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..subject import Subject

_AT_ONCE = 64  # texts in one pass of the text encoder


@dataclass(frozen=True)
class FoundPrompt:
    """A text that was found.

    Attributes:
        text: it, as one would type it.
        ids: its tokens, without the special ones around them.
        distance: mean square of E(text) - (E(target) + eta v).
        start: the distance the search began with.
    """

    text: str
    ids: tuple[int, ...]
    distance: float
    start: float


def concept_direction(subject: Subject, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """v, `[T, D]`, from phrases (with the concept, without it) that are otherwise alike."""
    with_it = subject.encode([pair[0] for pair in pairs]).hidden
    without = subject.encode([pair[1] for pair in pairs]).hidden
    return (with_it - without).mean(0)


def tokens_of(subject: Subject, words: Sequence[str]) -> frozenset[int]:
    """What to ban so that no word of `words` is used: its tokens, and tokens that contain it."""
    tokenizer = subject.pipeline.tokenizer
    own = {i for w in words for i in tokenizer(w, add_special_tokens=False).input_ids}
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    around = {i for i, t in enumerate(texts) if any(w.lower() in t.lower() for w in words)}
    return frozenset(own | around)


def search_prompt(
    subject: Subject,
    target: str,
    direction: Tensor,
    *,
    banned: Collection[int] = (),
    eta: float = 3.0,
    length: int = 16,
    steps: int = 200,
    candidates: int = 128,
    top: int = 64,
    seed: int = 0,
    on_step: Callable[[float], object] = lambda distance: None,
) -> FoundPrompt:
    """Search one prompt.

    Args:
        subject: a pipeline; of it only tokenizers and text encoders are used.
        target: what the picture should show besides the concept, in words.
        direction: v, from `concept_direction`.
        banned: token ids never to use, for instance `tokens_of` the concept's words. Special tokens
            never are.
        eta: how much of v; Ring-A-Bell takes 3 to 5.5.
        length: K.
        steps: each asks for one gradient and evaluates `candidates` prompts.
        candidates: prompts a step, less those that cannot be typed.
        top: tokens a place, among which swaps are drawn.
        seed: of the first prompt and of the swaps.
        on_step: told the distance of the best prompt so far.

    Raises:
        ConfigError: `config_range` when `length` tokens do not fit the encoder, or no prompt of
            that length can be made from what is not banned.
    """
    typist = _Typist(subject, length, banned)
    goal = (subject.encode([target]).hidden[0] + eta * direction).detach()
    generator = torch.Generator().manual_seed(seed)
    ids, text = typist.first(generator)
    best = start = _distances(subject, [text], goal)[0].item()
    for _ in range(steps):
        slope = _slope(subject, text, goal, length)
        slope[:, ~typist.allowed] = torch.inf
        liked = slope.topk(min(top, int(typist.allowed.sum())), largest=False).indices
        place = torch.randint(length, (candidates,), generator=generator)
        choice = torch.randint(liked.shape[1], (candidates,), generator=generator)
        swapped = ids.repeat(candidates, 1)
        swapped[torch.arange(candidates), place] = liked[place, choice]
        swapped, texts = typist.typed(swapped.unique(dim=0))
        if texts:
            distances = _distances(subject, texts, goal)
            k = int(distances.argmin())
            if distances[k] < best:
                best, ids, text = distances[k].item(), swapped[k], texts[k]
        on_step(best)
    return FoundPrompt(text, tuple(ids.tolist()), best, start)


class _Typist:
    """Which tokens may be used, and whether a row of them can be typed."""

    def __init__(self, subject: Subject, length: int, banned: Collection[int]) -> None:
        self.tokenizer: Any = subject.pipeline.tokenizer
        self.length, room = length, self.tokenizer.model_max_length - 2
        if not 1 <= length <= room:
            raise ConfigError(
                "config_range", f"a prompt of {length} tokens does not fit; choose 1 to {room}"
            )
        self.allowed = torch.ones(len(self.tokenizer), dtype=torch.bool)
        self.allowed[[*self.tokenizer.all_special_ids, *banned]] = False

    def first(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """Random words, ids `[K]` and text."""
        alone = torch.arange(len(self.allowed))[self.allowed, None]
        words, _ = self.typed(alone)
        for _ in range(100 if len(words) else 0):
            drawn = words[torch.randint(len(words), (1, self.length), generator=generator)]
            rows, texts = self.typed(drawn.squeeze(-1))
            if texts:
                return rows[0], texts[0]
        raise ConfigError(
            "config_range", f"no prompt of {self.length} tokens can be made from what is not banned"
        )

    def typed(self, rows: Tensor) -> tuple[Tensor, list[str]]:
        """Those of the rows `[N, K]` that survive being typed, and how they read."""
        if not len(rows):
            return rows, []
        texts = self.tokenizer.batch_decode(rows.tolist(), clean_up_tokenization_spaces=False)
        texts = [text.strip() for text in texts]
        again = self.tokenizer(texts, add_special_tokens=False).input_ids
        same = [
            k for k, (old, new) in enumerate(zip(rows.tolist(), again, strict=True)) if old == new
        ]
        return rows[same], [texts[k] for k in same]


@torch.no_grad()
def _distances(subject: Subject, texts: Sequence[str], goal: Tensor) -> Tensor:
    parts = []
    for at in range(0, len(texts), _AT_ONCE):
        apart = subject.encode(texts[at : at + _AT_ONCE]).hidden - goal
        parts.append(apart.float().square().mean((1, 2)))
    return torch.cat(parts)


def _slope(subject: Subject, text: str, goal: Tensor, length: int) -> Tensor:
    """How the distance grows along every token at every place, float32 `[K, V]`, on the CPU."""
    pipeline = subject.pipeline
    tables = [
        encoder.get_input_embeddings()
        for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))
        if encoder is not None
    ]
    leaves: list[Tensor] = []

    def cut(module: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hooks = [table.register_forward_hook(cut) for table in tables]
    try:
        apart = subject.encode([text], gradient=True).hidden[0] - goal
    finally:
        for hook in hooks:
            hook.remove()
    slopes = torch.autograd.grad(apart.float().square().mean(), leaves)
    words = slice(1, 1 + length)  # behind the beginning-of-text token
    size = len(pipeline.tokenizer)
    along = [
        (slope[0, words].float() @ table.weight[:size].float().T).detach().cpu()
        for slope, table in zip(slopes, tables, strict=True)
    ]
    return torch.stack(along).sum(0)
