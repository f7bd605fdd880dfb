# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's text encoders as the sanitizer sees them: Stable Diffusion 1, 2, XL and its refiner.

A1111 and reForge wrap each encoder in a module, Forge in an engine, of the same make: a text
becomes chunks of 75 tokens with a multiplier each, textual inversions lie over some of them, and
what comes back are the rows with the multipliers applied. The host's own methods are asked for all
of it, so chunks, commas, BREAK, clip skip, LoRAs and devices are as for any prompt.

Emphasis is a function of all rows at once (it restores their mean), which nobody can turn back. So
a prompt with emphasis is encoded once more without, to be judged; and over what was cleaned the
host's own emphasis is put again. A prompt without emphasis is judged by the rows the host has.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from typing import Any

import torch
from torch import Tensor

from safegen_core.errors import SanitizeError
from safegen_core.header import printable
from safegen_core.sanitize import clip_words
from safegen_core.sanitize.encoder import Chunk, Encoding, Part, Word

# What A1111 and reForge call their encoders, by type: subclasses are for other languages.
_MODULES = {
    "FrozenCLIPEmbedderWithCustomWords": "l",
    "FrozenCLIPEmbedderForSDXLWithCustomWords": "l",
    "FrozenOpenCLIPEmbedderWithCustomWords": "h",
    "FrozenOpenCLIPEmbedder2WithCustomWords": "g",
    "CLIP_SD_15_L": "l",
    "CLIP_SD_21_H": "h",
    "CLIP_SD_XL_L": "l",
    "CLIP_SD_XL_G": "g",
}
# What Forge's models call theirs, by the kind of the model, in the order of their columns.
_ENGINE = "text_processing_engine"
_ENGINES = (
    ("is_sd1", {"l": _ENGINE}),
    ("is_sd2", {"h": _ENGINE}),
    ("is_sdxl", {"l": f"{_ENGINE}_l", "g": f"{_ENGINE}_g"}),
    ("is_sdxl", {"g": f"{_ENGINE}_g"}),
)
_POOLED = "g"  # the only encoder whose pooled vector a denoiser reads


@dataclass(frozen=True)
class Reading:
    """A text that the host has encoded.

    Attributes:
        chunks: its words.
        encodings: of each chunk, without emphasis.
    """

    chunks: list[Chunk]
    encodings: list[Encoding]


@dataclass(frozen=True)
class _Tower:
    """One encoder: its name, and the host's object around it."""

    name: str
    engine: Any

    @property
    def inversions(self) -> Any:
        """Whoever keeps textual inversions between the tokens and the embedding layer."""
        return getattr(self.engine, "hijack", None) or self.engine.embeddings

    @property
    def rows(self) -> int:
        return self.engine.chunk_length + 2

    @property
    def width(self) -> int:
        module = self.engine
        if not isinstance(module, torch.nn.Module):
            module = module.text_encoder
        layers = (m for m in module.modules() if isinstance(m, torch.nn.Embedding))
        return next(layers).embedding_dim

    def words(self, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """Plain tokens as words."""
        return clip_words.words(getattr(self.engine, "tokenizer", None) or _OpenClip(), ids)


class _OpenClip:
    """The tokenizer of A1111's OpenCLIP encoders, as far as words need it."""

    def __init__(self) -> None:
        from modules.sd_hijack_open_clip import tokenizer

        self._pieces = tokenizer.decoder
        self.all_special_ids = [
            tokenizer.encoder[f"<{which}_of_text>"] for which in ("start", "end")
        ]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._pieces[number] for number in ids]


class WebuiEncoder:
    """Implements `safegen_core.sanitize.encoder.Encoder` for the model of a request.

    It encodes as the model is set at that moment: its device, its clip skip, its LoRAs. A word's
    tokens are, by encoder, numbers or one textual inversion of the host.

    Args:
        model: the host's `shared.sd_model`.

    Raises:
        SanitizeError: `sanitize_encoder` for the text encoders of other models.
    """

    def __init__(self, model: Any) -> None:
        self._towers = _towers(model)
        _make_ready(model, self._towers)

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        return self._towers[0].rows

    # --- the protocol

    def chunks(self, text: str) -> list[Chunk]:
        """A text as the host cuts it, with its emphasis and textual inversions."""
        # a textual inversion may be longer for one of SDXL's encoders than for the other
        cut = zip_longest(*(self._cut(tower, text) for tower in self._towers), fillvalue=[])
        return [clip_words.side_by_side(told) for told in cut]

    def encode(self, chunks: Sequence[Chunk]) -> list[Encoding]:
        """Each chunk, emphasis ignored; what a replacement pushed out of the window is cut off."""
        parts = [self._forward(tower, chunks) for tower in self._towers]
        return list(zip(*parts, strict=True))

    # --- what the host has encoded

    def emphasised(self, texts: Sequence[str]) -> bool:
        """Whether any word of texts that the host encodes together has an emphasis.

        Together, because the mean that is restored is that of all of them.
        """
        engine = self._towers[0].engine
        return any(m != 1 for t in texts for c in engine.tokenize_line(t)[0] for m in c.multipliers)

    def read(self, text: str, cond: Any, plain: bool) -> Reading:
        """What the host made of a text.

        Args:
            text: it.
            cond: the host's answer: rows `[T * chunks, D]`, or a dict of them ("crossattn") and a
                vector that begins with the pooled one ("vector").
            plain: these are the rows without emphasis; else it is encoded again.

        Raises:
            SanitizeError: `sanitize_encoder` where the answer does not belong to the text.
        """
        chunks = self.chunks(text)
        given, vector = _parts_of(cond)
        # a text is filled up with empty chunks to the longest that is encoded with it
        chunks += [()] * (len(given) // self.rows - len(chunks))
        widths = [tower.width for tower in self._towers]
        if tuple(given.shape) != (self.rows * len(chunks), sum(widths)):
            raise SanitizeError(
                "sanitize_encoder",
                f"The text encoder gave a tensor of the shape {list(given.shape)} for "
                f"{len(chunks)} chunks of {self.rows} rows, {sum(widths)} wide. Another extension "
                "changed it so that nothing can be said of the prompt; disable that one.",
            )
        if not plain:
            encodings = self.encode(chunks)
            # the denoiser is told the pooled vector of the first chunk only
            encodings[1:] = [tuple(replace(p, pooled=None) for p in e) for e in encodings[1:]]
            return Reading(chunks, encodings)
        encodings = []
        for k, (chunk, rows) in enumerate(zip(chunks, given.cpu().split(self.rows), strict=True)):
            encoding = []
            for tower, states in zip(self._towers, rows.split(widths, -1), strict=True):
                pooled = None
                if tower.name == _POOLED and k == 0 and vector is not None:
                    pooled = vector[: tower.width].cpu()
                numbers = self._told(tower, chunk)[1]
                encoding.append(clip_words.part(tower.name, states, numbers, pooled))
            encodings.append(tuple(encoding))
        return Reading(chunks, encodings)

    def assembled(
        self, chunks: Sequence[Chunk], encodings: Sequence[Encoding], reading: Reading, cond: Any
    ) -> Any:
        """What takes the place of the host's answer, with its emphasis put on again: a copy.

        A chunk that nobody changed keeps its rows bit for bit.

        Args:
            chunks: what the sanitizer hands on.
            encodings: of them.
            reading: what it was given.
            cond: the host's answer.
        """
        given, vector = _parts_of(cond)
        rows = []
        for k, (chunk, encoding) in enumerate(zip(chunks, encodings, strict=True)):
            if encoding is reading.encodings[k]:
                rows.append(given[k * self.rows : (k + 1) * self.rows])
                continue
            columns = [
                self._emphasised(tower, chunk, part)
                for tower, part in zip(self._towers, encoding, strict=True)
            ]
            rows.append(torch.cat(columns, -1).to(given))
        if not isinstance(cond, dict):
            return torch.cat(rows)
        changed = copy.copy(cond)
        changed["crossattn"] = torch.cat(rows)
        pooled = encodings[0][-1].pooled
        if vector is not None and pooled is not None and encodings[0] is not reading.encodings[0]:
            changed["vector"] = torch.cat([pooled.to(vector), vector[len(pooled) :]])
        return changed

    def mark(self, encodings: Sequence[Encoding]) -> str:
        """What tells the state of the encoders: weights, layer, LoRAs.

        Every prompt's start row is the same, bit for bit, as long as nothing about them changes.
        """
        told = hashlib.sha256()
        for part in encodings[0]:
            told.update(part.name.encode())
            told.update(part.states[0].float().numpy().tobytes())
        return told.hexdigest()

    # --- tokens

    def _cut(self, tower: _Tower, text: str) -> list[list[Word]]:
        chunks, _ = tower.engine.tokenize_line(text)
        return [self._read(tower, chunk) for chunk in chunks]

    def _read(self, tower: _Tower, chunk: Any) -> list[Word]:
        """Words of one of the host's chunks."""
        found = []
        for (place, weight), run in groupby(_content(tower.engine, chunk), lambda c: c[:2]):
            some = tuple(token for _, _, token in run)
            named = place is not None
            words = [(printable(some[0].name, 60), some)] if named else tower.words(some)
            found += [Word(text, weight, {tower.name: ids}) for text, ids in words]
        return found

    def _told(self, tower: _Tower, chunk: Chunk) -> tuple[list[int], list[int], list[tuple]]:
        """Token numbers, the number of each one's word, and (place, textual inversion)."""
        ids: list[int] = []
        numbers: list[int] = []
        over: list[tuple] = []
        for number, word in enumerate(chunk):
            for token in word.tokens.get(tower.name, ()):
                count = 1 if isinstance(token, int) else int(token.vectors)
                if len(ids) + count > tower.engine.chunk_length:
                    return ids, numbers, over
                if not isinstance(token, int):
                    over.append((len(ids), token))
                ids += [token] if isinstance(token, int) else [0] * count
                numbers += [number] * count
        return ids, numbers, over

    # --- forwards

    def _forward(self, tower: _Tower, chunks: Sequence[Chunk]) -> list[Part]:
        from modules import devices

        engine, told = tower.engine, [self._told(tower, chunk) for chunk in chunks]
        tokens = [_filled(tower, ids) for ids, _, _ in told]
        tower.inversions.fixes = [over for _, _, over in told]
        with torch.no_grad(), devices.autocast():
            z = engine.process_tokens(tokens, [[1.0] * tower.rows for _ in tokens])
        pooled = z.pooled.cpu() if tower.name == _POOLED else None
        return [
            clip_words.part(tower.name, states, numbers, None if pooled is None else pooled[k])
            for k, (states, (_, numbers, _)) in enumerate(zip(z.cpu(), told, strict=True))
        ]

    def _emphasised(self, tower: _Tower, chunk: Chunk, part: Part) -> Tensor:
        """Rows `[T, D]` with the emphasis of their words, by the host's own rule."""
        weights = torch.tensor([*(word.weight for word in chunk), 1.0])[part.words]
        if (weights == 1).all():
            return part.states
        rule = _emphasis(tower.engine)
        rule.tokens = [_filled(tower, self._told(tower, chunk)[0])]
        rule.multipliers = weights[None].to(part.states)
        rule.z = part.states[None]
        rule.after_transformers()
        return rule.z[0]


def _towers(model: Any) -> list[_Tower]:
    """The encoders of a model, in the order of their columns."""
    own = {name for name in getattr(model, "__dict__", ()) if name.startswith(_ENGINE)}
    for kind, engines in _ENGINES:
        if own and own == set(engines.values()) and getattr(model, kind, False):
            return [_Tower(name, getattr(model, at)) for name, at in engines.items()]
    if not own:
        several = getattr(getattr(model, "conditioner", None), "embedders", None)
        one = getattr(model, "cond_stage_model", None)
        modules = [m for m in several if m.input_key == "txt"] if several else [one]
        names = [_MODULES.get(type(module).__name__) for module in modules]
        if modules and None not in names:
            return [_Tower(str(n), module) for n, module in zip(names, modules, strict=True)]
    raise SanitizeError(
        "sanitize_encoder",
        "The sanitizer reads the prompts of Stable Diffusion 1, 2 and XL, and the loaded model is "
        f"of another kind ({type(model).__name__}). Set SafeGen's prompts to 'off' for it; the "
        "check of pictures works with every model.",
    )


def _make_ready(model: Any, towers: Sequence[_Tower]) -> None:
    """Bring the encoders where they are asked, set as for this request.

    The host did so if it has just encoded, and did not if the answer came from its cache.
    """
    from modules.shared import opts

    if getattr(opts, "use_old_emphasis_implementation", False):
        raise SanitizeError(
            "sanitize_encoder",
            "The option 'Use old emphasis implementation' is on, which hides from the sanitizer "
            "what the prompt says. Turn it off under Settings, Compatibility.",
        )
    if hasattr(model, "set_clip_skip"):
        model.set_clip_skip(int(opts.CLIP_stop_at_last_layers))
    for tower in towers:
        if hasattr(tower.engine, "emphasis"):  # Forge's; it also says how a text is read
            tower.engine.emphasis = _emphasis(tower.engine)
    if getattr(model, "forge_objects", None) is not None:
        try:
            from backend import memory_management as memory
        except ImportError:
            from ldm_patched.modules import model_management as memory
        memory.load_model_gpu(model.forge_objects.clip.patcher)
    elif getattr(model, "lowvram", False):
        model.get_learned_conditioning([""])  # fetches all of it, as calling its parts does not


def _emphasis(engine: Any) -> Any:
    """The emphasis that is chosen in the host's settings."""
    from modules.shared import opts

    if hasattr(engine, "emphasis"):
        from backend.text_processing import emphasis as rules
    else:
        from modules import sd_emphasis as rules
    return rules.get_current_option(opts.emphasis)()


def _content(engine: Any, chunk: Any) -> Iterator[tuple[int | None, float, Any]]:
    """(place of its textual inversion, weight, token or inversion) between start and end.

    The end is looked for from the end of the list: the first end token may be one that somebody
    typed to hide what follows, and rows after it still reach the denoiser.
    """
    tokens, weights = list(chunk.tokens[1:]), list(chunk.multipliers[1:])
    while tokens and tokens[-1] == engine.id_end:
        tokens.pop()
    over = {place: inversion for place, inversion in chunk.fixes}
    at = 0
    while at < len(tokens):
        inversion = over.pop(at, None)
        if inversion is None:
            yield None, float(weights[at]), tokens[at]
            at += 1
        else:
            yield at, float(weights[at]), inversion
            at += int(inversion.vectors)
    # A1111 leaves one behind whose place it moved to the next chunk; it is read here all the same
    for place, inversion in over.items():
        yield place, 1.0, inversion


def _filled(tower: _Tower, ids: Sequence[int]) -> list[int]:
    engine = tower.engine
    return [engine.id_start, *ids] + [engine.id_end] * (tower.rows - 1 - len(ids))


def _parts_of(cond: Any) -> tuple[Tensor, Tensor | None]:
    """Rows, and the vector beside them, of the host's answer to a text."""
    rows = cond.get("crossattn") if isinstance(cond, dict) else cond
    vector = cond.get("vector") if isinstance(cond, dict) else None
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise SanitizeError(
            "sanitize_encoder",
            "The host's answer to the prompt is of a kind that SafeGen does not know. Another "
            "extension changes it; disable that one, or update SafeGen.",
        )
    return rows, vector
