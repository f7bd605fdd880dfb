# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy's JSON, read strictly: what is not understood is an error, never skipped.

A key that is overlooked is a protection its operator believes in and does not have.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ..errors import PolicyError
from ..header import printable
from ..strict_json import read_object

MAX_BYTES = 1_000_000
_MAX_DEPTH = 16  # the schema needs 4; a mapping given by a host may even contain itself


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object from a UTF-8 file of at most `MAX_BYTES`.

    Raises:
        PolicyError: `policy_unreadable`.
    """
    try:
        return read_object(path, longest=MAX_BYTES)
    except OSError as error:
        raise PolicyError(
            "policy_unreadable", f"Policy {printable(path)} cannot be read: {printable(error)}."
        ) from error
    except ValueError as error:
        raise PolicyError(
            "policy_unreadable",
            f"Policy {printable(path)} is not a valid policy file: {printable(error)}.",
        ) from None


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of dicts, lists and scalars only: what is checked is what is used and hashed.

    Raises:
        PolicyError: `policy_value` if nested too deeply, or a key is not text.
    """
    if depth > _MAX_DEPTH:
        raise PolicyError("policy_value", f"{where} is nested too deeply.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PolicyError(
                    "policy_value", f"{where} has the key {printable(repr(key))}; keys are text."
                )
        return {str(key): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    return value


def canonical(values: Mapping[str, Any], where: str) -> str:
    """The one spelling of a checked document that is hashed: sorted keys, no spaces.

    Raises:
        PolicyError: `policy_value` for what UTF-8 or JSON cannot hold, or beyond `MAX_BYTES`.
    """
    try:
        text = json.dumps(
            values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        size = len(text.encode("utf-8"))
    except (ValueError, TypeError) as error:
        raise PolicyError(
            "policy_value", f"{where} cannot be written as JSON: {printable(error)}."
        ) from None
    if size > MAX_BYTES:
        raise PolicyError("policy_value", f"{where} is larger than {MAX_BYTES} bytes.")
    return text


def keys(kind: type) -> tuple[str, ...]:
    """The keys of a section that a dataclass describes."""
    return tuple(item.name for item in fields(kind))


class Section:
    """One object of a policy, whose values are taken by kind; a wrong one is named by its path.

    Args:
        values: the object as JSON holds it.
        path: where it stands ("images.censor"; "" is the document itself).
        known: the keys it may have; None allows any.
        where: what messages call the document.

    Raises:
        PolicyError: `policy_value` if it is no object, `policy_unknown_key`.
    """

    def __init__(self, values: Any, path: str, known: Sequence[str] | None, where: str) -> None:
        self.path, self.where = path, where
        if not isinstance(values, dict):
            self._refuse(path, values, "an object {...}")
        self.values: dict[str, Any] = values
        for key in values:
            if known is not None and key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}."
                raise PolicyError(
                    "policy_unknown_key",
                    f"{where}: key {printable(self._path(key))} is unknown; {hint}",
                )

    def section(self, key: str, known: Sequence[str] | None) -> Section:
        """The object under `key`; `{}` if absent."""
        return Section(self.values.get(key, {}), self._path(key), known, self.where)

    def text(self, key: str, default: str | None = None, *, longest: int = 100) -> str:
        """Visible text of 1 to `longest` characters on one line."""
        if default is not None and key not in self.values:
            return default
        return self._text(self._path(key), self._get(key, None), longest)

    def texts(self, key: str, default: Sequence[str]) -> tuple[str, ...]:
        """A list of different texts, at least one."""
        values = self._get(key, list(default))
        if not isinstance(values, list) or not values:
            self._refuse(self._path(key), values, "a list of names, at least one")
        found = tuple(self._text(self._path(key), value, 100) for value in values)
        if len(set(found)) < len(found):
            self._refuse(self._path(key), values, "a list without repetition")
        return found

    def choice(self, key: str, choices: Sequence[Any], default: Any = None) -> Any:
        """One of `choices`, and of the same type: true is not 1."""
        value = self._get(key, default)
        if not any(type(value) is type(one) and value == one for one in choices):
            self._refuse(self._path(key), value, " or ".join(json.dumps(one) for one in choices))
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number from `low` to `high`."""
        value = self._get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # NaN is not between anything
            self._refuse(self._path(key), value, f"a number from {low:g} to {high:g}")
        return float(value)

    def refuse(self, key: str, wanted: str) -> NoReturn:
        """Reject the value of `key`: say what it must be."""
        self._refuse(self._path(key), self.values.get(key), wanted)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if key not in self.values and default is None:
            raise PolicyError(
                "policy_value", f"{self.where}: key {printable(self._path(key))} is missing."
            )
        return value

    def _path(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _text(self, path: str, value: Any, longest: int) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self._refuse(path, value, "text on one line")
        if len(value) > longest:
            self._refuse(path, value, f"text of at most {longest} characters")
        return value

    def _refuse(self, path: str, value: Any, wanted: str) -> NoReturn:
        raise PolicyError(
            "policy_value",
            f"{self.where}{': ' if path else ''}{printable(path)} is {printable(repr(value), 80)}; "
            f"it must be {wanted}.",
        )
