# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' text encoders over the geometry of `tests.sanitize.toy`: words are vectors.

A1111's modules and Forge's engines cut, multiply and call in the same way; what differs is where
they stand, who keeps textual inversions, and who brings them to the device.
"""

from __future__ import annotations

import contextlib
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

from tests.safegen_webui.host import prompt_parser
from tests.sanitize.toy import WIDTH, Toy

START, END, PAD = 1, 2, 0
_SPECIAL = {PAD: "!</w>", START: "<start_of_text>", END: "<end_of_text>"}

PromptChunkFix = namedtuple("PromptChunkFix", ["offset", "embedding"])


class Vocabulary:
    """A tokenizer of whole words; a word with a dash is two tokens."""

    bos_token_id, eos_token_id, pad_token_id = START, END, END
    all_special_ids = (START, END)

    def __init__(self):
        self.pieces = dict(_SPECIAL)
        self.ids = {piece: number for number, piece in self.pieces.items()}

    @property
    def decoder(self):
        return self.pieces

    @property
    def encoder(self):
        return self.ids

    def encode(self, text):
        pieces = []
        for word in text.replace(",", " , ").split():
            *first, last = word.split("-")
            pieces += [*first, word if word in self.ids else f"{last}</w>"]
        for piece in pieces:
            if piece not in self.ids:
                self.ids[piece] = len(self.ids)
                self.pieces[self.ids[piece]] = piece
        return [self.ids[piece] for piece in pieces]

    def __call__(self, texts, **_):
        return {"input_ids": [self.encode(text) for text in texts]}

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[number] for number in ids]


WORDS = Vocabulary()
"""All models share one, as CLIP's do; also open_clip's, which A1111 keeps for itself."""


class Network(nn.Module):
    """Toy's rule over tokens: own vector and place, then the mean of what was read so far."""

    def __init__(self, name, vocabulary, seed=0):
        super().__init__()
        self.name, self.vocabulary, self.toy = name, vocabulary, Toy(seed=seed)
        self.table = nn.Embedding(512, WIDTH)  # hosts' have one; its rows are not used here
        self.moved = nn.Parameter(torch.zeros(WIDTH, WIDTH))  # what a LoRA would do
        self.inversions = SimpleNamespace(fixes=None)
        self.places = torch.stack([self.toy._vector(name, f"<{n}>") * 0.3 for n in range(77)])
        self.vectors = {}
        self.calls = 0

    @torch.no_grad()
    def forward(self, tokens):
        self.calls += len(tokens)
        fixes, self.inversions.fixes = self.inversions.fixes, None
        rows = []
        for k, ids in enumerate(tokens.tolist()):
            own = self.places.clone()
            for i, number in enumerate(ids):
                if number > END or i == 0:
                    own[i] += self._vector(number)
            for offset, inversion in fixes[k] if fixes else ():
                own[offset + 1 : offset + 1 + inversion.vectors] = inversion.vec
            counts = torch.arange(1, 77)[:, None]
            read = torch.cat([own[:1], own[1:].cumsum(0) / counts])
            rows.append(own + read)
        states = torch.stack(rows)
        return states + states @ self.moved

    def _vector(self, number):
        if number not in self.vectors:
            piece = self.vocabulary.pieces[number].removesuffix("</w>")
            self.vectors[number] = self.toy._vector(self.name, piece)
        return self.vectors[number]


class Inversions:
    """The host's database of textual inversions; also A1111's `hijack`, which holds one."""

    def __init__(self, network, vocabulary):
        self.network, self.vocabulary, self.known = network, vocabulary, {}
        self.embedding_db = self

    @property
    def fixes(self):
        return self.network.inversions.fixes

    @fixes.setter
    def fixes(self, value):
        self.network.inversions.fixes = value

    def add(self, name, vec):
        found = SimpleNamespace(name=name, vec=vec, vectors=len(vec))
        (number,) = self.vocabulary.encode(name)
        self.known[number] = found
        return found

    def find_embedding_at_position(self, tokens, offset):
        found = self.known.get(tokens[offset])
        return (found, 1) if found else (None, None)


class _Cutting:
    """What A1111's modules and Forge's engines share."""

    chunk_length = 75
    id_start, id_end, id_pad = START, END, END

    def tokenize_line(self, line):
        parsed = prompt_parser.parse_prompt_attention(line, self.rule().name)
        chunks = [SimpleNamespace(tokens=[], multipliers=[], fixes=[])]

        def room(count):
            if len(chunks[-1].tokens) + count > self.chunk_length:
                chunks.append(SimpleNamespace(tokens=[], multipliers=[], fixes=[]))
            return chunks[-1]

        for text, weight in parsed:
            if text == "BREAK":
                chunks.append(SimpleNamespace(tokens=[], multipliers=[], fixes=[]))
                continue
            tokens = self.words.encode(text)
            for at, token in enumerate(tokens):
                found, _ = self.inversions.find_embedding_at_position(tokens, at)
                count = found.vectors if found else 1
                chunk = room(count)
                if found:
                    chunk.fixes.append(PromptChunkFix(len(chunk.tokens), found))
                chunk.tokens += [0 if found else token] * count
                chunk.multipliers += [weight] * count
        for chunk in chunks:
            left = self.chunk_length - len(chunk.tokens)
            chunk.tokens = [START, *chunk.tokens, *[END] * (left + 1)]
            chunk.multipliers = [1.0, *chunk.multipliers, *[1.0] * (left + 1)]
        return chunks, len(chunks) * self.chunk_length

    def process_tokens(self, tokens, multipliers):
        ids = torch.tensor(tokens)
        z = self.network(ids)
        pooled = z[torch.arange(len(ids)), (ids == END).int().argmax(1)].flip(-1)
        rule = self.rule()
        rule.tokens, rule.multipliers, rule.z = tokens, torch.tensor(multipliers), z
        rule.after_transformers()
        rule.z.pooled = pooled
        return rule.z

    def told(self, texts):
        """What the host's forward does with texts: rows and pooled vectors."""
        lists = [self.tokenize_line(text)[0] for text in texts]
        empty = self.tokenize_line("")[0][0]
        zs = []
        for i in range(max(map(len, lists))):
            batch = [chunks[i] if i < len(chunks) else empty for chunks in lists]
            self.inversions.fixes = [chunk.fixes for chunk in batch]
            zs.append(
                self.process_tokens([c.tokens for c in batch], [c.multipliers for c in batch])
            )
        return torch.hstack(zs), zs[0].pooled


class _Module(_Cutting, nn.Module):
    """A1111's and reForge's; the subclasses only differ by their names, as the adapter asks."""

    input_key = "txt"

    def __init__(self, network, words):
        nn.Module.__init__(self)
        self.network, self.words = network, words
        self.hijack = self.inversions = Inversions(network, words)
        self.tokenizer = words

    def rule(self):
        from modules import sd_emphasis, shared

        return sd_emphasis.get_current_option(shared.opts.emphasis)()


class FrozenCLIPEmbedderWithCustomWords(_Module):
    pass


class FrozenCLIPEmbedderForSDXLWithCustomWords(_Module):
    pass


class FrozenOpenCLIPEmbedder2WithCustomWords(_Module):
    def __init__(self, network, words):
        super().__init__(network, words)
        self.tokenizer = None  # A1111's has none: open_clip's is used


class FrozenXLMREmbedderWithCustomWords(FrozenCLIPEmbedderWithCustomWords):
    """Of another language, and no kind that the sanitizer knows."""


class Engine(_Cutting):
    """Forge's `ClassicTextProcessingEngine`: no module, and its emphasis is set by each call."""

    def __init__(self, network, words):
        self.network = self.text_encoder = network
        self.words = self.tokenizer = words
        self.embeddings = self.inversions = Inversions(network, words)
        self.emphasis = None  # set by whoever calls

    def rule(self):
        return type(self.emphasis)()


class _Model:
    """The host's `sd_model`; `towers` are its encoders in the order of their columns."""

    cond_stage_key = "txt"

    def get_learned_conditioning(self, texts):
        self.fetched = True
        told = [tower.told(texts) for tower in self.towers]
        rows = torch.cat([rows for rows, _ in told], -1)
        if not self.is_sdxl:
            return rows
        size = torch.tensor([[float(getattr(texts, "width", 0) or 0), 1.0]]).repeat(len(texts), 1)
        return {"crossattn": rows, "vector": torch.cat([told[-1][1], size], -1)}


class Sd1(_Model):
    is_sd1, is_sdxl = True, False

    def __init__(self, seed=0, kind=FrozenCLIPEmbedderWithCustomWords):
        self.cond_stage_model = kind(Network("l", WORDS, seed), WORDS)
        self.towers = [self.cond_stage_model]


class Sdxl(_Model):
    is_sd1, is_sdxl = False, True

    def __init__(self, seed=0):
        kinds = {"l": FrozenCLIPEmbedderForSDXLWithCustomWords}
        kinds["g"] = FrozenOpenCLIPEmbedder2WithCustomWords
        self.towers = [kind(Network(name, WORDS, seed), WORDS) for name, kind in kinds.items()]
        sizes = SimpleNamespace(input_key="original_size_as_tuple")
        self.cond_stage_model = self.conditioner = SimpleNamespace(embedders=[*self.towers, sizes])


class Refiner(Sdxl):
    def __init__(self, seed=0):
        super().__init__(seed)
        del self.towers[0], self.conditioner.embedders[0]


class ForgeSd1(_Model):
    is_sd1, is_sd2, is_sdxl = True, False, False

    def __init__(self, seed=0):
        self.text_processing_engine = Engine(Network("l", WORDS, seed), WORDS)
        self.towers = [self.text_processing_engine]
        self.forge_objects = SimpleNamespace(clip=SimpleNamespace(patcher="patcher"))
        self.clip_skip = None

    def set_clip_skip(self, clip_skip):
        self.clip_skip = clip_skip

    def get_learned_conditioning(self, texts):
        from backend.text_processing import emphasis
        from modules import shared

        for tower in self.towers:
            tower.emphasis = emphasis.get_current_option(shared.opts.emphasis)()
        return super().get_learned_conditioning(texts)


class ForgeSdxl(ForgeSd1):
    is_sd1, is_sdxl = False, True

    def __init__(self, seed=0):
        super().__init__(seed)
        del self.text_processing_engine
        self.text_processing_engine_l = Engine(Network("l", WORDS, seed), WORDS)
        self.text_processing_engine_g = Engine(Network("g", WORDS, seed), WORDS)
        self.towers = [self.text_processing_engine_l, self.text_processing_engine_g]


class Original:
    name = "Original"

    def after_transformers(self):
        mean = self.z.mean()
        z = self.z * self.multipliers[..., None]
        self.z = z * (mean / z.mean())


class NoNorm:
    name = "No norm"

    def after_transformers(self):
        self.z = self.z * self.multipliers[..., None]


class Ignore:
    name = "Ignore"

    def after_transformers(self):
        pass


def _rules(name):
    module = ModuleType(name)
    rules = (Original, NoNorm, Ignore, type("EmphasisNone", (Ignore,), {"name": "None"}))
    module.get_current_option = lambda wanted: next(r for r in rules if r.name == wanted)
    return module


def installed(monkeypatch, model, data_path):
    """Put the host's modules in place around a model; gives `shared` and what was loaded."""
    opts = SimpleNamespace(
        emphasis="Original", use_old_scheduling=False, use_old_emphasis_implementation=False,
        CLIP_stop_at_last_layers=1,
    )  # fmt: skip
    state = SimpleNamespace(interrupted=False, skipped=False, textinfo=None)
    shared = ModuleType("modules.shared")
    shared.opts, shared.state, shared.sd_model = opts, state, model
    shared.cmd_opts = SimpleNamespace()
    devices = ModuleType("modules.devices")
    devices.autocast = contextlib.nullcontext
    open_clip = ModuleType("modules.sd_hijack_open_clip")
    open_clip.tokenizer = WORDS
    paths = ModuleType("modules.paths")
    paths.data_path, paths.models_path = str(data_path), str(data_path / "models")
    loaded = []
    memory = ModuleType("backend.memory_management")
    memory.load_model_gpu = loaded.append
    stand_ins = {
        "modules": ModuleType("modules"),
        "modules.shared": shared,
        "modules.devices": devices,
        "modules.paths": paths,
        "modules.sd_hijack_open_clip": open_clip,
        "modules.sd_emphasis": _rules("modules.sd_emphasis"),
        "modules.prompt_parser": prompt_parser,
        "backend": ModuleType("backend"),
        "backend.memory_management": memory,
        "backend.text_processing": ModuleType("backend.text_processing"),
        "backend.text_processing.emphasis": _rules("backend.text_processing.emphasis"),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
    return SimpleNamespace(shared=shared, loaded=loaded, opts=opts)
