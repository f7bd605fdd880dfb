# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sanitizer finds in real language, and what it costs beside a text encoder.

    python benchmarks/bench_sanitize.py --out docs/bench

Writes `sanitize.json` and `sanitize.md`. README.md here says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this SafeGen, installed or not

import results

from safegen_core.evaluate.rates import rate
from safegen_core.evaluate.subject import Subject
from safegen_core.evaluate.text import SubjectEncoder
from safegen_core.lab.concept import lab_bank
from safegen_core.lab.model import load_pipeline
from safegen_core.sanitize import clip_words
from safegen_core.sanitize.bank import Bank, read_bank
from safegen_core.sanitize.encoder import Encoder, Encoding, Part, Word
from safegen_core.sanitize.network import Calibration, Network, RowNetwork
from safegen_core.sanitize.profile import Profile, fit_profile
from safegen_core.sanitize.sanitizer import PRESETS, Sanitizer
from safegen_core.sanitize.score import AXES, ConceptScore, RoleScore
from safegen_core.train.sanitizer.loop import Options, train_network
from tests.sanitize import language, minilm

_AT_ONCE = 64
_WORDS = 40  # of the prompt that is timed
# width, layers, heads of the encoders' published configurations
_ENCODERS = {"l": (768, 12, 12), "g": (1280, 32, 20)}
_MODELS = {"CLIP-L (SD 1)": ("l",), "CLIP-L + bigG (SDXL)": ("l", "g")}


def main() -> None:
    """Run the parts that were asked for, and write what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/bench"), metavar="DIR")
    parser.add_argument("--templates", type=int, default=20, help="an ImageNet class (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="in every arm (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=("language", "trained", "miniature", "cost"))
    parser.add_argument("--seeds", type=int, default=3, help="trained networks (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = minilm.MiniLM()
    profile = fit_profile(encoder, read_bank("sexual"))
    parts = {
        "language": lambda: _language(encoder, profile, args.templates),
        "trained": lambda: _trained(encoder, profile, args.seeds),
        "miniature": lambda: _miniature(args.seeds),
        "cost": lambda: [_cost(name, of, profile, args.rounds) for name, of in _MODELS.items()],
    }
    file = args.out / "sanitize.json"
    # what is not measured now stays as it was measured
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    machine = f"{platform.platform()}, {os.cpu_count()} cores, {args.threads} thread(s)"
    for part in args.parts or parts:
        report[part] = {
            "date": str(date.today()),
            "machine": machine,
            "torch": torch.__version__,
            "found": parts[part](),
        }
    results.write(args.out, "sanitize", report, _markdown(report))


def _language(encoder: minilm.MiniLM, profile: Profile, templates: int) -> dict[str, Any]:
    """Scores of every set, as z; nothing of a sentence is kept."""
    bank = read_bank("sexual")
    harmless, unsafe = _harmless(templates), _unsafe()
    z = {name: _z(encoder, [profile], texts)[0] for name, texts in (harmless | unsafe).items()}
    big = z["ImageNet"]
    sets = {}
    for name, found in z.items():
        flagged = _flagged(profile, found)
        auc = (found[:, None] > big[None]).float().mean().item() if name in unsafe else None
        sets[name] = {"n": len(found), "flagged": flagged, "auc": auc}
    at = [big.quantile(1 - share).item() for share in _SHARES]
    curve = [
        {"harmless": share, **{name: (z[name] > x).float().mean().item() for name in unsafe}}
        for share, x in zip(_SHARES, at, strict=True)
    ]
    return {"sets": sets, "curve": curve, "bank": bank.digest[:12]}


def _harmless(templates: int) -> dict[str, list[str]]:
    found = {"ImageNet": language.imagenet(templates)}
    found |= {kind: language.hard(kind) for kind in language.HARD}
    return found | {"four in a row": _in_a_row(language.imagenet(4)[:4000], 1000)}


def _unsafe() -> dict[str, list[str]]:
    bank = read_bank("sexual")
    found = {kind: language.unsafe(kind, bank) for kind in language.UNSAFE}
    around = language.imagenet(3)
    found["direct, among three others"] = [
        f"{around[3 * i]}, {text}, {around[3 * i + 1]}, {around[3 * i + 2]}"
        for i, text in enumerate(found["direct"])
    ]
    return found


def _flagged(profile: Profile, z: Tensor) -> dict[str, dict[str, float]]:
    score = torch.tensor([profile.score.of(x) for x in z.tolist()])
    return {
        preset: rate((score >= dial.threshold).float().tolist()).__dict__
        for preset, dial in PRESETS.items()
    }


_SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def _in_a_row(texts: Sequence[str], apart: int) -> list[str]:
    """Long prompts of four unrelated sentences."""
    return [", ".join(texts[i::apart]) for i in range(apart)]


def _z(encoder: minilm.MiniLM, profiles: Sequence[Profile], texts: Sequence[str]) -> Tensor:
    """What each profile says of each text, `[profiles, texts]`."""
    chunks = [encoder.chunks(text)[0] for text in texts]
    found: list[list[float]] = []
    for at in range(0, len(chunks), _AT_ONCE):
        for encoding in encoder.encode(chunks[at : at + _AT_ONCE]):
            found.append([max(profile.score.z(encoding).values()) for profile in profiles])
    return torch.tensor(found).T


def _trained(encoder: minilm.MiniLM, profile: Profile, seeds: int) -> dict[str, Any]:
    """Networks of several seeds: their test, and what each finds together with the profile."""
    runs, networks = _runs(encoder, read_bank("sexual"), seeds)
    profiles = [profile, *(network.joined(profile) for network in networks)]
    sets = {}
    for name, texts in (_harmless(_FEW_TEMPLATES) | _unsafe()).items():
        each = zip(profiles, _z(encoder, profiles, texts), strict=True)
        flagged = [_flagged(profile, z)["default"] for profile, z in each]
        sets[name] = {"n": len(texts), "flagged": flagged}
    return {"runs": runs, "sets": sets}


_FEW_TEMPLATES = 2


def _miniature(seeds: int) -> list[dict[str, Any]]:
    """Networks of several seeds for the text encoder of the lab's miniature: their test."""
    return _runs(SubjectEncoder(Subject(load_pipeline())), lab_bank(), seeds)[0]


def _runs(encoder: Encoder, bank: Bank, seeds: int) -> tuple[list[dict[str, Any]], list[Network]]:
    runs, networks = [], []
    for seed in range(seeds):
        start = time.process_time()
        network, record = train_network(encoder, bank, Options(seed=seed))
        seconds = round(time.process_time() - start)
        runs.append({"seed": seed, "cpu_seconds": seconds, **record.to_values()})
        networks.append(network)
    return runs, networks


def _cost(model: str, names: Sequence[str], fitted: Profile, rounds: int) -> dict[str, Any]:
    """Milliseconds of one forward, of one score and of the whole gate, in turns."""
    from transformers import CLIPTextConfig, CLIPTextModel

    towers, parts = [], []
    roles, words = clip_words.rows([1] * _WORDS, 77)
    for name in names:
        width, layers, heads = _ENCODERS[name]
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="quick_gelu" if name == "l" else "gelu",
        )
        towers.append(CLIPTextModel(config).eval())
        pooled = torch.randn(width) if name == "g" else None
        parts.append(Part(name, torch.randn(77, width), roles, words, pooled))
    encoding: Encoding = tuple(parts)
    profile = replace(fitted, score=_as_wide(fitted.score, encoding))
    gate, with_network = Sanitizer(None, profile), Sanitizer(None, _joined(profile, encoding))
    text = [f"word{n}" for n in range(_WORDS)]
    chunk = tuple(map(Word, text))
    ids = torch.randint(0, 49000, (1, 77))
    # of one thread its CPU time, which other work on the machine hardly changes
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def anew() -> Encoding:
        """Another object: of the one it judged last a network remembers what it said."""
        return (*encoding,)

    assert anew() is not encoding
    judges = {
        "score": lambda: profile.score([anew()]),
        "gate": lambda: gate([chunk], [anew()], " ".join(text)),
        "gate with a network": lambda: with_network([chunk], [anew()], " ".join(text)),
    }
    seconds: dict[str, list[float]] = {"forward": [], **{name: [] for name in judges}}
    with torch.no_grad():
        for turn in range(rounds + 2):
            # a forward before each, so that all find the caches as a forward leaves them
            for name, judge in judges.items():
                start = clock()
                for tower in towers:
                    tower(input_ids=ids)
                middle = clock()
                judge()
                end = clock()
                if turn >= 2:  # warm-up
                    seconds["forward"].append(middle - start)
                    seconds[name].append(end - middle)
    forward = torch.tensor(seconds["forward"]).view(rounds, len(judges))
    found: dict[str, Any] = {
        "model": model,
        "rounds": rounds,
        "forward_ms": 1e3 * forward.median().item(),
    }
    for i, name in enumerate(judges):
        ratio = (torch.tensor(seconds[name]) / forward[:, i]).sort().values
        found[name] = {
            "ms": 1e3 * torch.tensor(seconds[name]).median().item(),
            "ratio": ratio.median().item(),
            "low": ratio[math.floor(0.025 * rounds)].item(),
            "high": ratio[math.ceil(0.975 * rounds) - 1].item(),
        }
    return found


def _as_wide(fitted: ConceptScore, encoding: Encoding) -> ConceptScore:
    """A score of a fitted one's roles, and of padding, which MiniLM has not, for these encoders.

    Its numbers are random, and so small that every prompt passes.
    """
    roles = {}
    for part in encoding:
        for role in ("word", "end", "pad", *(("pooled",) if part.pooled is not None else ())):
            width = part.states.shape[1]
            axes, weights = torch.randn(AXES, width + 1), 1e-9 * torch.randn(AXES)
            roles[part.name, role] = RoleScore(torch.zeros(width), axes, weights)
    return ConceptScore(roles, fitted.threshold, fitted.slope)


def _joined(profile: Profile, encoding: Encoding) -> Profile:
    """With networks of the encoders' widths and random weights, which let every prompt pass."""
    rows = {
        part.name: RowNetwork(
            part.states.shape[1], 0 if part.pooled is None else len(part.pooled)
        ).eval()
        for part in encoding
    }
    probe = {part.name: part.states[:2] for part in encoding}
    network = Network(probe, profile.bank, rows, Calibration(1e3, 1.0), {})
    return network.joined(replace(profile, probe=probe))


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# The sanitizer, measured",
        "",
        "Written by `benchmarks/bench_sanitize.py`; `benchmarks/README.md` says what the figures "
        "mean.",
    ]
    for part, text in _TEXTS.items():
        if part in report:
            told = report[part]
            title, *rest = text(told["found"])
            measured = f"{told['date']}. {told['machine']}, torch {told['torch']}."
            lines += ["", f"## {title}", "", measured, "", *rest]
    return "\n".join(lines) + "\n"


def _language_text(found: dict[str, Any]) -> list[str]:
    presets = list(PRESETS)
    lines = [
        "Real language, with MiniLM as the encoder",
        f"| set | n | AUC against ImageNet | {' | '.join(f'flagged, {p}' for p in presets)} |",
        "|---|---|---|" + "---|" * len(presets),
    ]
    for name, row in found["sets"].items():
        auc = "" if row["auc"] is None else f"{row['auc']:.3f}"
        flagged = [
            f"{100 * f['value']:.2f}% ({100 * f['low']:.2f} to {100 * f['high']:.2f})"
            for f in row["flagged"].values()
        ]
        lines.append(f"| {name} | {row['n']} | {auc} | {' | '.join(flagged)} |")
    kinds = [name for name in found["curve"][0] if name != "harmless"]
    lines += [
        "",
        "Found at the threshold that flags a share of the ImageNet prompts:",
        "",
        f"| of ImageNet | {' | '.join(kinds)} |",
        "|---|" + "---|" * len(kinds),
    ]
    lines += [
        f"| {100 * row['harmless']:g}% | "
        + " | ".join(f"{100 * row[k]:.0f}%" for k in kinds)
        + " |"
        for row in found["curve"]
    ]
    return lines


def _runs_text(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| seed | CPU time | test | AUC | harmless rows change | found | of these, under attack |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {run['seed']} | {run['cpu_seconds']} s | {'passed' if run['passed'] else 'failed'} | "
        f"{run['auc']:.4f} | {run['change']:.2%} | {run['found']:.0%} | {run['recall']:.0%} |"
        for run in runs
    ]


def _miniature_text(runs: Sequence[dict[str, Any]]) -> list[str]:
    return ["Trained mode, in the miniature", *_runs_text(runs)]


def _trained_text(found: dict[str, Any]) -> list[str]:
    runs = found["runs"]
    lines = ["Trained mode, with MiniLM as the encoder", *_runs_text(runs)]
    names = ["training-free", *(f"and seed {run['seed']}" for run in runs)]
    lines += [
        "",
        "Flagged at `default`:",
        "",
        f"| set | n | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for name, row in found["sets"].items():
        flagged = " | ".join(f"{each['value']:.2%}" for each in row["flagged"])
        lines.append(f"| {name} | {row['n']} | {flagged} |")
    return lines


def _cost_text(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Cost of judging a harmless prompt of {_WORDS} words",
        "| text encoder | rounds | forward | score | of a forward | whole gate | of a forward "
        "| with a trained network | of a forward |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['model']} | {row['rounds']} | {row['forward_ms']:.0f} ms | "
        + " | ".join(_share_text(row[name]) for name in ("score", "gate", "gate with a network"))
        + " |"
        for row in found
    ]


def _share_text(one: dict[str, float]) -> str:
    """Median, and 95 % of the rounds."""
    share = f"{100 * one['ratio']:.2f}% ({100 * one['low']:.2f} to {100 * one['high']:.2f})"
    return f"{one['ms']:.1f} ms | {share}"


_TEXTS = {
    "language": _language_text,
    "trained": _trained_text,
    "miniature": _miniature_text,
    "cost": _cost_text,
}


if __name__ == "__main__":
    main()
