# SPDX-License-Identifier: GPL-3.0-or-later
r"""White-box attack on the prompt embedding: any states at all that make the model draw it again.

    min_c  E_t,eps || e_0 + w (f(z_t, t, c) - e_0) - truth ||^2        e_0 = f(z_t, t, "")

over latents z of forbidden pictures: the guided prediction at the scale w the pictures will be
drawn with. All T x D numbers of the context are free, which no typed prompt could reach; it is an
upper bound on what prompts can do. The attacker needs the patched weights and forbidden pictures.
Found on the base instead and used on the patched model, the same is an attack that needs neither:
embeddings that people pass on.

Source: textual inversion as an attack, Pham et al., "Circumventing Concept Erasure Methods For
Text-to-Image Generative Models", ICLR 2024, with the whole context in place of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..subject import Context, Subject
from .gradients import parameters_learn


def optimise_context(
    subject: Subject,
    latents: Tensor,
    start: Context,
    *,
    cfg: float,
    steps: int = 400,
    lr: float = 0.05,
    batch: int = 12,
    seed: int = 0,
    on_step: Callable[[float], object] = lambda loss: None,
) -> Context:
    """Search one context.

    Args:
        subject: the model under attack, as it is now.
        latents: of forbidden pictures `[N, C, h, w]`, scaled.
        start: one row, for instance an encoded prompt; pooled states stay as they are.
        cfg: guidance scale the pictures will be drawn at.
        steps: of Adam.
        lr: its rate.
        batch: latents a step.
        seed: of latents, timesteps and noise.
        on_step: told the loss.

    Returns:
        One row, without gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = start.hidden.detach().clone().requires_grad_()
    adam = torch.optim.Adam([hidden], lr=lr)
    empty = subject.encode([""]).expand(batch)
    with parameters_learn(subject.unet, False), torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(latents), (batch,), generator=generator)
            t = torch.randint(len(subject.abar), (batch,), generator=generator)
            eps = torch.randn((batch, *latents.shape[1:]), generator=generator)
            z, t = latents[chosen].to(subject.device), t.to(subject.device)
            eps = eps.to(z)
            z_t = subject.noised(z, eps, t)
            predicted = subject.predict(z_t, t, start.replaced(hidden).expand(batch))
            if cfg > 1:
                with torch.no_grad():
                    without = subject.predict(z_t, t, empty)
                predicted = without + cfg * (predicted - without)
            loss = (predicted - subject.truth(z, eps, t)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            on_step(loss.item())
    return start.replaced(hidden.detach())


@dataclass(frozen=True)
class FoundContext:
    """The best of several searches.

    Attributes:
        context: one row.
        start: number of the start it came from.
        searched: whether the search made it; if not, the start as it is hits more often.
        rates: share of hits of every restart, in the order of the starts.
        unsearched: share of hits of the starts as they are.
        losses: mean loss over the last quarter of the steps, likewise.
    """

    context: Context
    start: int
    searched: bool
    rates: tuple[float, ...]
    unsearched: tuple[float, ...]
    losses: tuple[float, ...]


def strongest(
    subject: Subject,
    latents: Tensor,
    starts: Sequence[Context],
    *,
    hits: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    cfg: float,
    steps: int = 400,
    lr: float = 0.05,
    batch: int = 12,
    seed: int = 0,
    sampler: str = "ddim",
    on_step: Callable[[float], object] = lambda loss: None,
) -> FoundContext:
    """Search from every start, draw a few pictures with each result, keep what hits most often.

    The starts themselves are tried, too: a search for likelihood under guidance may lead away from
    words that the model obeys. The attacker chooses by looking, so judge the winner on other seeds.
    Between equal rates the lower loss wins; all searches see the same latents, timesteps and noise,
    so losses compare.

    Args:
        subject: the model under attack. The base's subject, for an embedding to reuse elsewhere.
        latents: of forbidden pictures `[N, C, h, w]`, scaled.
        starts: different contexts of one row each, one a restart.
        hits: how much each picture, uint8 RGB `[B, H, W, 3]`, is what the attacker wants: float
            `[B]` in 0..1.
        seeds: of the pictures it is tried on.
        cfg: guidance scale, of the search and of the pictures.
        steps: as `optimise_context`, and so are lr, batch, seed and on_step.
        lr: likewise.
        batch: likewise.
        seed: likewise.
        sampler: of the pictures.
        on_step: likewise.

    Raises:
        ValueError: there is no start, or no seed.
    """
    if not starts or not seeds:
        raise ValueError("an attack needs a start, and seeds to be tried on")
    noise = subject.noise(seeds)
    contexts: list[Context] = []
    rates: list[float] = []
    unsearched: list[float] = []
    losses: list[float] = []

    def rate(context: Context) -> float:
        drawn = subject.sample(context.expand(len(seeds)), noise, cfg, sampler=sampler)
        return hits(subject.decode(drawn)).float().mean().item()

    for start in starts:
        told: list[float] = []

        def listen(loss: float, told: list[float] = told) -> None:
            told.append(loss)
            on_step(loss)

        context = optimise_context(
            subject, latents, start, cfg=cfg, steps=steps, lr=lr, batch=batch, seed=seed,
            on_step=listen,
        )  # fmt: skip
        last = told[-max(1, steps // 4) :]
        contexts.append(context)
        rates.append(rate(context))
        unsearched.append(rate(start))
        losses.append(sum(last) / max(1, len(last)))
    best = max(range(len(starts)), key=lambda k: (rates[k], -losses[k]))
    searched = rates[best] >= max(unsearched)
    if not searched:
        best = unsearched.index(max(unsearched))
    found = contexts[best] if searched else starts[best]
    return FoundContext(found, best, searched, tuple(rates), tuple(unsearched), tuple(losses))
