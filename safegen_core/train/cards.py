# SPDX-License-Identifier: GPL-3.0-or-later
"""Cards: how the work of a run fits a GPU, never what is learned.

A card is a TOML file in `cards/`: the memory it needs by family, `compute` keys, and a rank where
whole matrices would not fit. What it needs is counted on the true shapes by
`benchmarks/bench_train.py --memory`, at the family's own resolution, for the recipes `default` and
`nodata`, whichever needs more; no GPU has confirmed it yet. SD 2 takes the cards of SD 1, with
needs of its own for 768 pixels.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

CARDS = Path(__file__).parent / "cards"
MARGIN = 256 * 2**20
"""Bytes left alone: the screen and other programs take and give back while a run goes on."""

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Card:
    """How a run fits a GPU.

    Attributes:
        name: of its file.
        needs: family -> bytes of GPU memory that have to be free, the greatest need of the run.
        values: "compute" and perhaps "delta" -> keys, as a configuration file holds them.
        least: bytes below which it is not chosen, however little it needs: a GPU of another kind.
    """

    name: str
    needs: dict[str, int]
    values: dict[str, dict[str, Any]]
    least: int = 0

    @property
    def families(self) -> tuple[str, ...]:
        """The families it is for."""
        return tuple(self.needs)

    def wants(self, family: str) -> int:
        """Bytes that have to be free for it to be chosen."""
        return max(self.needs[family], self.least)

    def __str__(self) -> str:
        return self.name


NONE = Card("none", {}, {})
"""Settings as they are."""


def cards() -> list[Card]:
    """Every card that ships, by name."""
    return [_read(file) for file in sorted(CARDS.glob("*.toml"))]


def read_card(name: str) -> Card:
    """The card of a name.

    Raises:
        ConfigError: `config_unknown`, there is none.
    """
    known = sorted(file.stem for file in CARDS.glob("*.toml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ConfigError("config_unknown", f"unknown card {name!r}; {hint}")
    return _read(CARDS / f"{name}.toml")


def choose(family: str, free_bytes: int) -> Card | None:
    """The greatest card for a family that fits the free memory; None if none does."""
    fitting = [card for card in _for(family) if card.wants(family) + MARGIN <= free_bytes]
    return max(fitting, key=lambda card: card.wants(family), default=None)


def sentence(card: Card | None, free_bytes: int, device: str, family: str = "") -> str:
    """What was chosen and why, in a line for the terminal.

    Args:
        card: what `choose` said.
        free_bytes: what it was told.
        device: the GPU's name.
        family: that it was told; names the least that would do, where nothing fits.
    """
    found = f"{free_bytes / _GIB:.1f} GB free on {device}"
    if card is not None:
        return f"{found}: card {card} ({_about(card)})"
    known = _for(family)
    if not known:
        return f"{found}: no card fits this model; settings as they are"
    smallest = min(known, key=lambda card: card.wants(family))
    wanted = (smallest.wants(family) + MARGIN) / _GIB
    return (
        f"{found}: out of reach of every card for this model, the smallest ({smallest}) wants "
        f"{wanted:.1f} GB. Close other programs, take a smaller --data.resolution with --card "
        f"{smallest}, or train with --compute.device cpu"
    )


def _about(card: Card) -> str:
    compute = card.values["compute"]
    at_once = compute.get("at_once", 0)
    pairs = {0: "all pairs of a step", 1: "one pair"}.get(at_once, f"{at_once} pairs")
    said = [f"{pairs} at a time"]
    if rank := card.values.get("delta", {}).get("rank"):
        said.insert(0, f"rank {rank}")
    if compute.get("checkpointing"):
        said.append("recomputed activations")
    if compute.get("storage") == "fp8":
        said.append("frozen weights in 8 bits")
    if compute.get("adam") == "8bit":
        said.append("8-bit Adam")
    if compute.get("compile", "off") != "off":
        said.append("compiled")
    return ", ".join(said)


def _for(family: str) -> list[Card]:
    return [card for card in cards() if family in card.needs]


def _read(file: Path) -> Card:
    try:
        import tomllib as toml  # pyright: ignore[reportMissingImports]
    except ImportError:  # Python 3.10, as A1111 ships it
        import tomli as toml  # pyright: ignore[reportMissingImports]
    values = toml.loads(file.read_text(encoding="utf-8"))
    needs = {family: int(mib) * _MIB for family, mib in values.pop("needs_mib").items()}
    return Card(file.stem, needs, values, least=int(values.pop("least_mib", 0)) * _MIB)
