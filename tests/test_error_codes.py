# SPDX-License-Identifier: GPL-3.0-or-later
"""Error codes are stable, rightly prefixed and documented.

`python tests/test_error_codes.py` writes docs/errors.md anew from the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safegen_core import errors

ROOT = Path(__file__).parents[1]
FOLDERS = ("safegen_core", "safegen_comfy", "nodes", "safegen_webui", "scripts")
PAGE = ROOT / "docs" / "errors.md"
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.SafeGenError)
}

HEAD = """\
# Errors

Every error a user can meet carries a code. Codes are stable: hosts, scripts and tests may rely on
them, the words around them may change. Written from the source by
`python tests/test_error_codes.py`; `{...}` stands for what the program fills in.

| code | raised in | message |
|---|---|---|
"""


class Raised(NamedTuple):
    """One place that makes an error, in the order of the page."""

    code: str
    file: str
    line: int
    kind: str
    message: str


def raised() -> Iterator[Raised]:
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            code, message = ([*node.args, None, None][:2]) if node.args else (None, None)
            code, message = given.get("code", code), given.get("message", message)
            if node.func.id in CLASSES and isinstance(code, ast.Constant):
                where = file.relative_to(ROOT).as_posix().removeprefix("safegen_core/")
                yield Raised(code.value, where, node.lineno, node.func.id, spoken(message))


def spoken(message: ast.expr | None) -> str:
    """The message with `{...}` for every part that is computed."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(spoken(part) for part in message.values)
    if isinstance(message, ast.BinOp) and isinstance(message.op, ast.Add):
        return spoken(message.left) + spoken(message.right)
    return "{...}"


def page() -> str:
    rows: dict[str, list[Raised]] = {}
    for found in sorted(raised()):
        rows.setdefault(found.code, []).append(found)
    lines = []
    for code, places in rows.items():
        files = ", ".join(f"`{file}`" for file in sorted({place.file for place in places}))
        messages = dict.fromkeys(" ".join(place.message.split()) for place in places)
        told = "<br>".join(messages).replace("|", "\\|")
        lines.append(f"| `{code}` | {files} | {told} |\n")
    return HEAD + "".join(lines)


def test_every_code_starts_with_its_class_prefix():
    assert [r for r in raised() if not r.code.startswith(CLASSES[r.kind].prefix)] == []


def test_a_code_belongs_to_one_class():
    kinds: dict[str, set[str]] = {}
    for found in raised():
        kinds.setdefault(found.code, set()).add(found.kind)
    assert {code: kind for code, kind in kinds.items() if len(kind) > 1} == {}


def test_every_code_is_documented():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: .venv/bin/python tests/test_error_codes.py"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
