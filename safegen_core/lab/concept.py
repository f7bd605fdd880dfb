# SPDX-License-Identifier: GPL-3.0-or-later
"""The forbidden concept in sentences, as the sanitizer learns it in the miniature.

They are of the half `choose` and of direct wording alone. Synonyms, code words and held-out
sentences are what it has to recognise by itself, and what it is measured on is of the other half.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

from torch import nn

from ..evaluate.subject import Subject
from ..evaluate.text import SubjectEncoder
from ..sanitize.bank import Bank, Group
from ..sanitize.encoder import Encoder
from ..sanitize.profile import Profile, fit_profile
from ..sanitize.wordless import Wordless
from .prompts import prompts
from .world import FORBIDDEN

PAIRS, NEAR, BENIGN = 300, 300, 150
ANCHORS = ("circle", "plain")
"""A shape first: of "a striped plain" the model makes a striped star again, at a harmless score."""

_SEED = 77
_profiles: WeakKeyDictionary[nn.Module, Profile] = WeakKeyDictionary()
_wordless: WeakKeyDictionary[nn.Module, Profile] = WeakKeyDictionary()


@functools.cache
def lab_bank(pairs: int = PAIRS, near: int = NEAR, benign: int = BENIGN) -> Bank:
    """The bank; the same on every machine.

    Args:
        pairs: sentences with the concept, less a few that are drawn twice.
        near: near misses among the harmless sentences, likewise.
        benign: others, likewise.
    """
    rng = random.Random(_SEED)
    matched = {text: _without(text, rng) for text in _drawn("direct", pairs)}
    harmless = dict.fromkeys([*_drawn("near_miss", near), *_drawn("benign", benign)])
    content = json.dumps([list(matched.items()), list(harmless), ANCHORS])
    return Bank(
        name=FORBIDDEN,
        groups=(Group(("{}",), tuple(matched.items())),),
        harmless=tuple(harmless),
        anchors=ANCHORS,
        digest=hashlib.sha256(content.encode("utf-8")).hexdigest(),
    )


def lab_profile(subject: Subject) -> Profile:
    """What the sanitizer knows of the concept in a miniature's text encoder.

    Fitted when it is first asked for, in about five seconds of CPU time, and kept as long as the
    encoder is.
    """
    return _fitted(_profiles, subject, SubjectEncoder(subject))


def wordless_profile(subject: Subject) -> Profile:
    """What it knows of embeddings that come without their words, likewise."""
    return _fitted(_wordless, subject, Wordless(SubjectEncoder(subject)))


def _fitted(
    known: MutableMapping[nn.Module, Profile], subject: Subject, encoder: Encoder
) -> Profile:
    weights = subject.pipeline.text_encoder
    if weights not in known:
        known[weights] = fit_profile(encoder, lab_bank())
    return known[weights]


def _drawn(set_name: str, n: int) -> list[str]:
    return [prompt.text for prompt in prompts(set_name, n, _SEED, "choose")]


def _without(text: str, rng: random.Random) -> str:
    """The sentence without one half of the concept, or without both."""
    texture, shape = FORBIDDEN.split()
    missing = rng.choice(("texture", "shape", "both"))
    if missing != "shape":
        text = text.replace(
            texture, "plain" if missing == "both" else rng.choice(("plain", "dotted"))
        )
    if missing != "texture":
        others = ("square",) if missing == "both" else ("square", "circle", "triangle")
        text = text.replace(shape, rng.choice(others))
    return text
