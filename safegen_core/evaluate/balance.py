# SPDX-License-Identifier: GPL-3.0-or-later
r"""Whether classifier-free guidance turns a patch against itself.

A patch moves the network's answer without words by d_0 and its answer to a prompt by d_c. Guidance
of scale w moves the guided answer by

    (1 - w) d_0 + w d_c = (1 - w + w rho) d_0          where d_c = rho d_0

so it goes the way the patch was trained to go only while rho > 1 - 1/w. Both shifts are taken on
noised forbidden latents, with and without the patch, by the noise level:

    rho      <d_c, d_0> / <d_0, d_0>        the factor of d_0 nearest to d_c
    share    of |d|^2, what lies along the way to the mosaic, z_u - z_m, be it forwards or backwards
    reach    <d s / a, z_u - z_m> / |z_u - z_m|^2     for an eps-network; d s for a v-network

Reach is how much of the way to the mosaic the denoised picture is moved: 1 all of it, below 0 away
from it. It is linear: that of the guided answer is (1 - w) reach_0 + w reach_c, whatever rho is.
Each figure is a ratio of sums over all latents of a bin, so one that hardly moves counts little.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..apply import apply
from ..patch import Patch
from .subject import Context, Subject

_AT_ONCE = 32  # latents in one pass


@dataclass(frozen=True)
class Shift:
    """Where one answer of the network is moved to.

    Attributes:
        share: of it along the way to the mosaic, 0..1; NaN where it does not move.
        reach: of that way; NaN where the mosaics hide nothing.
    """

    share: float
    reach: float


@dataclass(frozen=True)
class Balance:
    """What a patch does to both answers in one range of timesteps.

    Attributes:
        first: first timestep.
        last: last timestep.
        n: noised latents it was seen on.
        rho: shift of the prompted answer in units of the other; NaN where that does not move.
        empty: the shift of the answer without words.
        prompted: the shift of the answer to the prompt.
    """

    first: int
    last: int
    n: int
    rho: float
    empty: Shift
    prompted: Shift

    def reach(self, cfg: float) -> float:
        """How much of the way to the mosaic the guided answer goes at this guidance scale."""
        return (1 - cfg) * self.empty.reach + cfg * self.prompted.reach


def bound(cfg: float) -> float:
    """The rho below which guidance of this scale, 1 or above, turns a patch against itself."""
    return 1 - 1 / cfg


def balance(
    subject: Subject,
    patch: Patch,
    z_unsafe: Tensor,
    z_mosaic: Tensor,
    context: Context,
    *,
    bins: int = 10,
    draws: int = 1,
    seed: int = 0,
    strength: float = 1.0,
    any_base: bool = False,
) -> list[Balance]:
    """Compare a patch's two shifts, by the noise level.

    Args:
        subject: a model with no patch on it; as it was when this returns.
        patch: the patch.
        z_unsafe: latents of pictures of what is forbidden, `[B, C, h, w]`.
        z_mosaic: those of the same pictures with their mosaic.
        context: their prompts, one row each.
        bins: equal ranges of timesteps.
        draws: of timestep and noise for each latent and bin.
        seed: of these.
        strength: of the patch.
        any_base: as of `apply`.

    Returns:
        One `Balance` a bin, from little noise to much.

    Raises:
        ModelError, PatchError: as of `apply`.
    """
    count, steps = len(z_unsafe), len(subject.abar)
    ranges = list(itertools.pairwise(k * steps // bins for k in range(bins + 1)))
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(*ends, (draws * count,), generator=random) for ends in ranges]
    t = torch.cat(drawn).to(subject.device)
    eps = torch.randn(len(t), *z_unsafe.shape[1:], generator=random).to(z_unsafe)
    row = torch.arange(count, device=subject.device).repeat(bins * draws)
    z_t = subject.noised(z_unsafe[row], eps, t)
    branches = (subject.encode([""]).expand(count), context)

    def answers() -> list[Tensor]:
        return [_ask(subject, z_t, t, branch, row) for branch in branches]

    before = answers()
    with apply(subject.pipeline, patch, strength, any_base=any_base):
        after = answers()
    empty, prompted = (b - a for a, b in zip(before, after, strict=True))
    way, step = (z_unsafe - z_mosaic).double().cpu().flatten(1)[row.cpu()], _step(subject, t)
    found = []
    for k, (first, end) in enumerate(ranges):
        some = slice(k * draws * count, (k + 1) * draws * count)
        d_0, d_c = empty[some], prompted[some]
        rho = _ratio(_dot(d_c, d_0).sum(), _dot(d_0, d_0).sum())
        shifts = (_shift(d, way[some], step[some]) for d in (d_0, d_c))
        found.append(Balance(first, end - 1, len(d_0), rho, *shifts))
    return found


@torch.no_grad()
def _ask(subject: Subject, z_t: Tensor, t: Tensor, context: Context, row: Tensor) -> Tensor:
    """Predictions as float64 on the CPU, one row a noised latent."""
    parts = [
        subject.predict(z_t[some], t[some], context[row[some]]).double().cpu()
        for some in torch.arange(len(z_t), device=z_t.device).split(_AT_ONCE)
    ]
    return torch.cat(parts).flatten(1)


def _step(subject: Subject, t: Tensor) -> Tensor:
    """How far the denoised latent moves, the other way, when the prediction moves by 1."""
    abar = subject.abar.double().cpu()[t.cpu()]
    s = (1 - abar).sqrt()
    return s / abar.sqrt() if subject.prediction == "epsilon" else s


def _shift(d: Tensor, way: Tensor, step: Tensor) -> Shift:
    along, length = _dot(d, way), _dot(way, way)
    share = (along.square() / length).nan_to_num(0.0).sum()  # 0 / 0: a mosaic that hides nothing
    return Shift(_ratio(share, _dot(d, d).sum()), _ratio((step * along).sum(), length.sum()))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else math.nan
