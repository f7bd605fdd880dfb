# SPDX-License-Identifier: GPL-3.0-or-later
"""A CLIP whose prompts are judged, and cleaned where they need to be, whoever encodes them.

ComfyUI's CLIP asks its `cond_stage_model` for every prompt, so a guard in that place sees all of
them: tokens, emphasis, textual inversions, SDXL's two texts. It travels with the CLIP through LoRA
loaders and clip skip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server import PromptServer

from ..safegen_core.errors import SanitizeError, coded
from ..safegen_core.sanitize.explanation import Explanation
from ..safegen_core.sanitize.sanitizer import PRESETS, Dial, Sanitizer
from . import branches, profiles
from .text_encoder import ComfyEncoder, Reading

CUSTOM = "custom"
CHOICES = [*PRESETS, CUSTOM]
"""Entries of the nodes' menu."""


class Guard:
    """Stands for a CLIP's `cond_stage_model`: everything but the encoding is the model's own.

    Args:
        model: the model.
        tokenizer: of the same CLIP.
        dial: threshold and strength.
        spared: asked before each prompt, whether it is to be left as it is.
        tell: told of each prompt that was judged.

    Attributes:
        explanation: of the last prompt that was judged.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dial: Dial,
        spared: Callable[[], bool] = branches.is_negative,
        tell: Callable[[Explanation], object] = lambda explanation: None,
    ) -> None:
        self.model, self.tokenizer, self.dial = model, tokenizer, dial
        self._spared, self._tell = spared, tell
        self.explanation: Explanation | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":  # copying asks before anything is there
            raise AttributeError(name)
        return getattr(self.model, name)

    def encode_token_weights(self, tokens: Any) -> tuple:
        """What the model answers, the very object if it may pass as it is.

        Whatever goes wrong is raised: an answer that nobody has judged does not leave here.

        Raises:
            SanitizeError: `sanitize_refused`, `sanitize_minors` for the prompt; others of that
                branch for what cannot be judged.
        """
        given = self.model.encode_token_weights(tokens)
        if self._spared():
            return given
        with coded():
            encoder = ComfyEncoder(self.model, self.tokenizer)
            reading = encoder.read(tokens, *given[:2])
            profile = profiles.find(encoder, reading.encodings)
            judge = Sanitizer(encoder, profile, self.dial)
            judged = judge(reading.chunks, reading.encodings, reading.text)
            self.explanation = judged.explanation
            self._tell(judged.explanation)
            released = judged.released()
            if released is reading.encodings:
                return given
            return encoder.assembled(judged.chunks or (), released, reading, given)


def guarded(clip: Any, dial: Dial, node: str | None = None) -> Any:
    """A copy of a CLIP with a guard; one that it has already is replaced.

    Args:
        clip: the CLIP.
        dial: threshold and strength.
        node: whose card shows what is judged.

    Raises:
        SanitizeError: `sanitize_encoder` for the text encoders of other models.
    """
    ComfyEncoder(unguarded(clip), clip.tokenizer)
    guard = Guard(
        unguarded(clip), clip.tokenizer, dial, tell=lambda explanation: _show(node, explanation)
    )
    return _with(clip, guard)


def explained(clip: Any, text: str, dial: Dial) -> Explanation:
    """What a guard would say of a text, also where it would refuse it.

    Raises:
        SanitizeError: it cannot be judged.
    """
    guard = Guard(unguarded(clip), clip.tokenizer, dial, spared=lambda: False)
    own = _with(clip, guard)
    try:
        own.encode_from_tokens(own.tokenize(text))
    except SanitizeError:
        if guard.explanation is None:
            raise
    assert guard.explanation is not None
    return guard.explanation


def encoder_at_work(clip: Any, work: Callable[[ComfyEncoder, Reading], None]) -> None:
    """Do something with a CLIP's encoder while the CLIP is loaded and set as for any prompt.

    Raises:
        SanitizeError: `sanitize_encoder` for the text encoders of other models.
    """

    class Working(Guard):
        def encode_token_weights(self, tokens: Any) -> tuple:
            given = self.model.encode_token_weights(tokens)
            encoder = ComfyEncoder(self.model, self.tokenizer)
            work(encoder, encoder.read(tokens, *given[:2]))
            return given

    own = _with(clip, Working(unguarded(clip), clip.tokenizer, PRESETS["default"]))
    own.encode_from_tokens(own.tokenize(""))


def unguarded(clip: Any) -> Any:
    """The model behind a CLIP, whether or not a guard stands before it."""
    model = clip.cond_stage_model
    return model.model if isinstance(model, Guard) else model


def dial_of(preset: str, threshold: float, strength: float) -> Dial:
    """What a node's inputs ask for; the numbers count for "custom" only."""
    return Dial(threshold, strength) if preset == CUSTOM else PRESETS[preset]


def _with(clip: Any, model: Any) -> Any:
    own = clip.clone()
    own.cond_stage_model = model
    return own


def _show(node: str | None, explanation: Explanation) -> None:
    """Tell the browser that queued the run, and no other: it holds the words of the prompt."""
    server = PromptServer.instance
    if node is not None and server.client_id is not None:
        told = {"node": node, "prompt": explanation.json()}
        server.send_sync("safegen.prompt", told, server.client_id)
