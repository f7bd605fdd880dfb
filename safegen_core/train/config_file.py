# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a configuration: flag over user's file over card over preset over the fields' defaults.

A preset is a recipe (what is learned), a card how the work fits a GPU (`cards`). Without a preset
it is "default", or "nodata" where no pictures are named.

An unknown key, group or preset is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .cards import NONE, Card, read_card
from .config import GROUPS, PICTURES, VERSION, Config

PRESETS = Path(__file__).parent / "presets"


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    preset: str | None = None,
    card: Card | None = None,
) -> Config:
    """Read a TOML file, over its preset, under the overrides.

    Args:
        path: the file; relative paths in it start at its folder. None takes overrides alone.
        overrides: `{"objective.lambda_m": 0.1}`, as flags give them; relative paths start at the
            working folder.
        preset: name of a preset; wins over the file's `preset` key.
        card: used unless the file names one in its `card` key; `cards.NONE` for none at all.

    Raises:
        ConfigError: unreadable file, unknown key, preset or card, wrong type, value out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        values = _read_toml(path)
        _anchor(values, path.parent)
    return from_values(values, overrides, preset, card)


def from_values(
    values: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    preset: str | None = None,
    card: Card | None = None,
) -> Config:
    """Build a configuration from the contents of a TOML file; see `load_config`."""
    values = dict(values)
    version = values.pop("version", VERSION)
    if version != VERSION:
        raise ConfigError(
            "config_version", f"version is {version!r}; this safegen reads version {VERSION}"
        )
    own_preset, own_card = _named(values, "preset"), _named(values, "card")
    preset = preset or own_preset
    if own_card and card is not NONE:
        card = read_card(own_card)
    users: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    _merge(users, values)
    for dotted, value in (overrides or {}).items():
        group, _, key = dotted.partition(".")
        _known(group, GROUPS, "group")
        users[group][key] = value
    if preset is None:
        preset = "default" if any(users["data"].get(key) for key in PICTURES) else "nodata"
    merged: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for source in (read_preset(preset), card.values if card else {}, users):
        _merge(merged, source)
    _anchor(merged, Path.cwd())
    return Config(**{group: _group(group, keys) for group, keys in merged.items()})


def names_card(path: Path) -> bool:
    """Whether a TOML file chooses a card itself."""
    return "card" in _read_toml(path)


def _named(values: dict[str, Any], what: str) -> str | None:
    """Take the name of a preset or a card out of a file's values."""
    name = values.pop(what, None)
    if name is not None and not isinstance(name, str):
        raise ConfigError("config_type", f"{what} is {name!r}; it must be a string")
    return name


def _merge(into: dict[str, dict[str, Any]], source: Mapping[str, Any]) -> None:
    for group, keys in source.items():
        _known(group, GROUPS, "group")
        if not isinstance(keys, Mapping):
            raise ConfigError("config_type", f"{group} must be a table: [{group}]")
        into[group].update(keys)


def read_preset(name: str) -> dict[str, Any]:
    """The contents of a shipped preset.

    Raises:
        ConfigError: if there is none of that name.
    """
    _known(name, sorted(file.stem for file in PRESETS.glob("*.toml")), "preset")
    return _read_toml(PRESETS / f"{name}.toml")


def _group(group: str, keys: Mapping[str, Any]) -> Any:
    known = [item.name for item in dataclasses.fields(GROUPS[group])]
    for key in keys:
        _known(key, known, "key", f"{group}.")
    return GROUPS[group](**keys)


def _known(name: str, known: Iterable[str], what: str, where: str = "") -> None:
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(known)}"
    raise ConfigError("config_unknown", f"unknown {what} {where}{name}; {hint}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib as toml  # pyright: ignore[reportMissingImports]
    except ImportError:  # Python 3.10, as A1111 ships it
        import tomli as toml  # pyright: ignore[reportMissingImports]
    try:
        return toml.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors add a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("config_unreadable", f"cannot read {path}: {error}") from error
    except toml.TOMLDecodeError as error:
        raise ConfigError("config_syntax", f"{path} is not TOML: {error}") from error


def _anchor(values: Mapping[str, Any], folder: Path) -> None:
    """Make the paths of these values absolute, so that a copy elsewhere means the same."""
    for group, keys in values.items():
        if group not in GROUPS or not isinstance(keys, dict):
            continue
        for item in dataclasses.fields(GROUPS[group]):
            value = keys.get(item.name)
            if not isinstance(value, (str, Path)) or not str(value):
                continue
            path, kind = folder / Path(value).expanduser(), item.metadata["path"]
            if kind is True or (kind == "or name" and path.is_file()):
                keys[item.name] = str(path.resolve())
