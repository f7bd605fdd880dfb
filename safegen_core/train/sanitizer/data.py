# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer's network learns from: a bank in the encoder's own words, encoded once.

A sentence with the concept has a safe twin, which differs in the concept alone; what its rows
should be is what the twin's are. Each pair is told four times: plain, joined with a harmless
sentence, with words of its template left out (never of the pair's own: a concept may be a
conjunction), and among a few words of other sentences, as somebody adds them who looks for a prompt
that scores less. Pairs, and harmless sentences, that are held out are in none of the sentences that
are trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from ...errors import SanitizeError
from ...sanitize.bank import Bank
from ...sanitize.encoder import Chunk, Encoder, Role
from ...sanitize.network import ABSENT
from ..draws import generator

_HELD = 5  # one in so many pairs, and harmless sentences, is held out
_FEWEST = 10
_AT_ONCE = 32  # chunks in one call of the encoder
_DROPPED = 0.25
_ADDED = 4  # words at most on each side


@dataclass(frozen=True)
class Twin:
    """A sentence with the concept and its twin without.

    Attributes:
        unsafe, safe: the two.
        first, last: where the concept's words begin, and one after where they end, in `unsafe`.
        held: whether it is held out.
        plain: whether it is the bank's own, neither joined nor shortened.
    """

    unsafe: Chunk
    safe: Chunk
    first: int
    last: int
    held: bool
    plain: bool = False

    @property
    def length(self) -> int:
        """How many words the concept has."""
        return self.last - self.first


@dataclass(frozen=True)
class Rows:
    """Sentences as one encoder says them.

    Attributes:
        states: float16 `[N, T, D]`; bfloat16 for an encoder whose numbers are too large for it.
        roles: int8 `[N, T]`, `ABSENT` for rows that fill up.
        words: int64 `[N, T]`, the number of the row's word, -1 for none.
        pooled: `[N, P]`, or None.
    """

    states: Tensor
    roles: Tensor
    words: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Material:
    """All of it: n sentences with the concept, their n twins, then the harmless ones.

    Attributes:
        twins: the n pairs.
        held: of all N sentences, which are held out, bool `[N]`.
        plain: of all N, which are the bank's own, bool `[N]`.
        rows: by encoder.
    """

    twins: Sequence[Twin]
    held: Tensor
    plain: Tensor
    rows: dict[str, Rows]

    @property
    def unsafe(self) -> Tensor:
        """Of all N, which carry the concept, bool `[N]`."""
        return torch.arange(len(self.held)) < len(self.twins)


def prepare(
    encoder: Encoder,
    bank: Bank,
    seed: int,
    on_sentence: Callable[[int, int], object] = lambda done, of: None,
) -> Material:
    """Say and encode a bank.

    Args:
        encoder: whose network is trained.
        bank: the concept.
        seed: chooses what is held out, joined and dropped.
        on_sentence: told how many sentences are encoded, of how many; may raise to stop.

    Raises:
        SanitizeError: `sanitize_bank` when there is too little to hold some of it out,
            `sanitize_values` when the encoder answers with NaN.
    """
    twins, harmless = _told(encoder, bank, seed)
    chunks = [t.unsafe for t in twins] + [t.safe for t in twins] + [c for c, _, _ in harmless]
    held = [t.held for t in twins] * 2 + [held for _, held, _ in harmless]
    plain = [t.plain for t in twins] * 2 + [plain for _, _, plain in harmless]
    kept: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor | None]]] = {}
    for at in range(0, len(chunks), _AT_ONCE):
        for encoding in encoder.encode(chunks[at : at + _AT_ONCE]):
            for part in encoding:
                told = (part.states, *([] if part.pooled is None else [part.pooled]))
                if not all(torch.isfinite(x).all() for x in told):
                    raise SanitizeError(
                        "sanitize_values",
                        f"The text encoder {part.name!r} answers plain sentences with NaN or "
                        "infinity; it is broken, or its precision too low.",
                    )
                pooled = None if part.pooled is None else _small(part.pooled)
                kept.setdefault(part.name, []).append(
                    (_small(part.states), part.roles, part.words, pooled)
                )
        on_sentence(min(at + _AT_ONCE, len(chunks)), len(chunks))
    rows = {name: _stacked(x) for name, x in kept.items()}
    return Material(twins, torch.tensor(held), torch.tensor(plain), rows)


def kept(bank: Bank, seed: int) -> Bank:
    """A bank without what `prepare` holds out."""
    held = iter(_held(_pairs(bank), seed, "pairs"))
    groups = []
    for group in bank.groups:
        pairs = tuple(pair for pair in group.pairs if not next(held))
        groups += [replace(group, pairs=pairs)] if pairs else []
    calm = zip(bank.harmless, _held(len(bank.harmless), seed, "harmless"), strict=True)
    harmless = tuple(text for text, out in calm if not out)
    return replace(bank, groups=tuple(groups), harmless=harmless)


def _pairs(bank: Bank) -> int:
    return sum(len(group.pairs) for group in bank.groups)


def _told(
    encoder: Encoder, bank: Bank, seed: int
) -> tuple[list[Twin], list[tuple[Chunk, bool, bool]]]:
    """Twins, and harmless sentences with whether they are held out, and plain."""
    pairs, calm = _pairs(bank), len(bank.harmless)
    if min(pairs, calm) < _FEWEST:
        raise SanitizeError(
            "sanitize_bank",
            f"The concept bank has {pairs} pairs and {calm} harmless sentences; to train takes at "
            f"least {_FEWEST} of each, some of which are held out for the test.",
        )
    held_pair, held_calm = _held(pairs, seed, "pairs"), _held(calm, seed, "harmless")
    calm_of = {
        side: [text for text, held in zip(bank.harmless, held_calm, strict=True) if held == side]
        for side in (True, False)
    }
    words_of = {side: [w for text in calm_of[side] for w in text.split()] for side in calm_of}
    random = generator(seed, "sentences")

    def another(held: bool) -> str:
        return calm_of[held][int(torch.randint(len(calm_of[held]), (), generator=random))]

    def twin(template: str, pair: tuple[str, str], held: bool, plain: bool = False) -> Twin | None:
        unsafe, safe = (encoder.chunks(template.replace("{}", text))[0] for text in pair)
        return _twin(unsafe, safe, held, plain)

    twins, first = [], 0
    for group in bank.groups:
        for template in group.templates:
            for number, pair in enumerate(group.pairs, first):
                held = held_pair[number]
                whole = twin(template, pair, held, plain=True)
                if whole is None:  # the concept is beyond what the encoder reads of a sentence
                    continue
                order = [template, another(held)]
                if torch.rand((), generator=random) < 0.5:
                    order.reverse()
                twins.append(whole)
                for told in (
                    ", ".join(order),
                    _dropped(template, random),
                    _among(template, words_of[held], random),
                ):
                    more = twin(told, pair, held)
                    cut_off = more is None or more.length != whole.length
                    if not cut_off and told != template:
                        twins.append(more)
        first += len(group.pairs)
    if len({t.held for t in twins}) < 2:
        raise SanitizeError(
            "sanitize_bank",
            "In most sentences of the concept bank this encoder reads the same words with and "
            "without the concept, so that there is nothing to learn.",
        )
    harmless = []
    for text, held in zip(bank.harmless, held_calm, strict=True):
        harmless.append((encoder.chunks(text)[0], held, True))
        for told in (f"{text}, {another(held)}", _among(text, words_of[held], random)):
            harmless.append((encoder.chunks(told)[0], held, False))
    return twins, harmless


def _held(count: int, seed: int, what: str) -> list[bool]:
    order = torch.randperm(count, generator=generator(seed, "held", what))
    return (order < max(count // _HELD, 2)).tolist()


def _twin(unsafe: Chunk, safe: Chunk, held: bool, plain: bool) -> Twin | None:
    """The words that two sentences share at the start and the end are none of the concept's."""
    short = min(len(unsafe), len(safe))
    same = zip(unsafe, safe, strict=False)
    first = len([*takewhile(lambda pair: pair[0].text == pair[1].text, same)])
    back = zip(reversed(unsafe), reversed(safe), strict=False)
    after = len([*takewhile(lambda pair: pair[0].text == pair[1].text, back)])
    last = len(unsafe) - min(after, short - first)
    return Twin(unsafe, safe, first, last, held, plain) if first < last else None


def _dropped(template: str, random: torch.Generator) -> str:
    """A template with some of its words left out."""
    words = template.split(" ")
    kept = (torch.rand(len(words), generator=random) >= _DROPPED).tolist()
    return " ".join(w for w, keep in zip(words, kept, strict=True) if keep or "{}" in w)


def _among(text: str, words: Sequence[str], random: torch.Generator) -> str:
    """A text with a few words before or after it."""
    before, after = torch.randint(_ADDED + 1, (2,), generator=random).tolist()
    drawn: list[int] = torch.randint(len(words), (before + after,), generator=random).tolist()
    some = [words[i] for i in drawn]
    return " ".join([*some[:before], text, *some[before:]])


def _small(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    wide = x.abs().max() > torch.finfo(torch.float16).max
    return x.to(torch.bfloat16 if wide else torch.float16)


def _stacked(kept: list[tuple[Tensor, Tensor, Tensor, Tensor | None]]) -> Rows:
    states, roles, words, pooled = zip(*kept, strict=True)
    dtype = torch.bfloat16 if any(x.dtype == torch.bfloat16 for x in states) else torch.float16
    shape = len(kept), max(len(x) for x in states)
    out = torch.zeros((*shape, states[0].shape[1]), dtype=dtype)
    role = torch.full(shape, ABSENT, dtype=torch.int8)
    word = torch.full(shape, -1, dtype=torch.int64)
    for n, (x, r, w) in enumerate(zip(states, roles, words, strict=True)):
        out[n, : len(x)], role[n, : len(x)], word[n, : len(x)] = x, r.to(role), w.to(word)
    there = all(x is not None for x in pooled)
    return Rows(out, role, word, torch.stack([x.float() for x in pooled]) if there else None)


def labels(rows: Rows, material: Material) -> Tensor:
    """What rows are to be scored as: 1 for the concept, 0 for none, -1 for not asked, `[N, T]`.

    Of a sentence with the concept the concept's own words, the end and the padding are 1, the words
    before are 0. Those after have read it, more or less, and are left to what mending them needs.
    """
    n = len(material.twins)
    first = torch.tensor([t.first for t in material.twins])[:, None]
    last = torch.tensor([t.last for t in material.twins])[:, None]
    found = torch.zeros_like(rows.roles)
    words, roles = rows.words[:n], rows.roles[:n]
    found[:n] = ((words >= first) & (words < last)).to(found)
    found[:n][words >= last] = -1
    found[:n][(roles == Role.END) | (roles == Role.PAD)] = 1
    found[(rows.roles == ABSENT) | (rows.roles == Role.START)] = -1
    return found


def targets(rows: Rows, count: int) -> Tensor:
    """Which row of its twin a row should become, -1 for none, int64 `[n, T]`.

    Rows correspond where the twins have as many tokens; else only the ends do, and padding that
    stands in the same place.
    """
    mine, theirs = rows.roles[:count], rows.roles[count : 2 * count]
    at = torch.arange(mine.shape[1]).expand_as(mine).clone()
    equal = (mine == theirs).all(1, keepdim=True)
    at[~equal & ~((mine == Role.PAD) & (theirs == Role.PAD))] = -1
    end = (theirs == Role.END).int().argmax(1, keepdim=True).expand_as(at)
    at = torch.where(mine == Role.END, end, at)
    at[(mine == Role.START) | (mine == ABSENT)] = -1
    return at
