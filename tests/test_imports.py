# SPDX-License-Identifier: GPL-3.0-or-later
"""The arrows of docs/architecture.md hold; read from the source, whatever is installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "safegen_core"

# A room may import itself and the rooms of earlier lines; rooms on one line do not know each other.
# A new room needs a place here and in docs/architecture.md.
LAYERS = (
    {"errors"},
    {"families", "guide", "header", "page", "place", "progress", "strict_json"},
    {"atomic", "phrase_file", "recognise", "storage"},
    {"coverage", "delta", "fingerprint"},
    {"compress", "patch_file"},
    {"patch"},
    {"combine", "fit"},
    {"apply", "bake", "extract", "trust", "undo"},
    {"detect", "sanitize", "policy"},
    {"guard"},
    {"scan"},
    {"evaluate"},
    {"train"},
    {"lab"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}

HOST_MODULES = {
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths"),
    *("nodes", "server", "gradio", "launch", "modules", "modules_forge", "scripts"),
}
CORE_PACKAGES = {"torch", "safetensors", "numpy", "PIL", "tqdm"}
# What a room asks for by itself, and only where it needs it: a host may lack these.
LAZY = {
    ("detect", "onnxruntime"),
    ("page", "jinja2"),
    ("scan", "av"),
    ("trust", "cryptography"),
}
ABOVE_CORE = {"train", "evaluate", "lab", "commands", "cli", "__main__"}
LIGHT = {"errors", "families", "place", "recognise", "commands", "cli", "__main__"}


@dataclass(frozen=True)
class Import:
    """One import statement: `room` is set for our own modules, `package` for all others."""

    where: str
    importer: str
    room: str | None
    package: str | None
    top_level: bool


def room_of(file: Path) -> str:
    if file.stem == "__main__":  # a door, not a part of the room behind it
        return "__main__"
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for_types_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    package = ("safegen_core", *file.relative_to(CORE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            targets = [(*base, *module, alias.name) for alias in node.names]
        else:
            continue
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for target in targets:
            # `from . import __version__` names the package itself, not a room of it.
            ours = target[1] if relative and len(target) > 1 else None
            yield Import(
                where=f"{file.relative_to(ROOT).as_posix()}:{node.lineno}",
                importer=room_of(file),
                room=ours if ours and is_room(ours) else None,
                package=None if relative else target[0],
                top_level=id(node) not in inside_functions | for_types_only,
            )


def is_room(name: str) -> bool:
    return (CORE / f"{name}.py").is_file() or (CORE / name).is_dir()


FILES = sorted(CORE.rglob("*.py"))
IMPORTS = [found for file in FILES for found in imports_of(file)]
ROOMS = {room_of(file) for file in FILES} - {"__init__"}


def wrong(condition) -> list[str]:
    return [
        f"{i.where}: {i.importer} imports {i.room or i.package}" for i in IMPORTS if condition(i)
    ]


def test_every_room_has_its_place():
    assert ROOMS - set(LAYER_OF) == set()


def test_the_architecture_page_draws_this_arrow():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"^errors <-.+?(?=\nplanned)", page, re.MULTILINE | re.DOTALL)
    assert drawn is not None
    steps = [set(re.findall(r"\w+", step)) for step in drawn[0].split("<-")]
    built = [rooms & ROOMS for rooms in LAYERS[:-1]]  # the last, __main__, is no room to look into
    assert steps == [rooms for rooms in built if rooms]


def test_no_arrow_runs_back():
    assert not wrong(
        lambda i: (
            i.room not in (None, i.importer)
            and LAYER_OF.get(i.room, 0) >= LAYER_OF.get(i.importer, 0)
        )
    )


def test_the_package_itself_imports_nothing():
    assert not wrong(lambda i: i.importer == "__init__" and i.package != "__future__")


def test_our_own_modules_are_imported_relatively():
    # Hosts import the core under other names (`<path>.safegen_core`); an absolute import would
    # bring in a second copy, or none.
    assert not wrong(lambda i: i.package == "safegen_core")


def test_no_host_is_imported():
    assert not wrong(lambda i: i.package in HOST_MODULES)


def test_the_core_keeps_to_what_every_host_has():
    allowed = CORE_PACKAGES | set(sys.stdlib_module_names) | {None}
    assert not wrong(
        lambda i: (
            i.importer not in ABOVE_CORE
            and i.package not in allowed
            and (i.top_level or (i.importer, i.package) not in LAZY)
        )
    )


def test_tqdm_is_imported_where_it_is_used():
    assert not wrong(lambda i: i.package == "tqdm" and i.top_level and i.importer not in ABOVE_CORE)


def test_light_rooms_load_no_third_party_package():
    stdlib = set(sys.stdlib_module_names) | {None}
    assert not wrong(lambda i: i.importer in LIGHT and i.top_level and i.package not in stdlib)


def run_python(program: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_else():
    program = (
        "import sys; before = set(sys.modules); import safegen_core;"
        "print(*set(sys.modules) - before)"
    )
    assert set(run_python(program)) <= {"safegen_core"}


TWO_COPIES = """
import importlib, importlib.util, sys

def load(name, folder):
    spec = importlib.util.spec_from_file_location(
        name, folder + "/__init__.py", submodule_search_locations=[folder]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

folder, *rooms = sys.argv[1:]
copies = ("/hosts/a_x_b/safegen_core", "other_core")
for name in copies:
    load(name, folder)
    for room in rooms:
        importlib.import_module(f"{name}.{room}")
first, second = (sys.modules[f"{name}.errors"] for name in copies)
assert first.PatchError is not second.PatchError
try:
    raise first.PatchError("patch_family", "wrong family")
except Exception as error:
    assert not isinstance(error, second.SafeGenError)
    assert error.code == "patch_family"
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "safegen_core"))
"""


def test_two_copies_under_two_names_share_nothing():
    pytest.importorskip("torch")
    rooms = [file.stem for file in FILES if file.parent == CORE and not file.stem.startswith("__")]
    assert run_python(TWO_COPIES, str(CORE), *rooms) == []


# ComfyUI's side: a line may import what stands before it. The extension is the pack as ComfyUI sees
# it, so it lists the nodes although it lies in safegen_comfy.
COMFYUI_LAYERS = ("safegen_core", "safegen_comfy", "nodes", "extension", "__init__")
COMFYUI_MODULES = {
    *("comfy", "comfy_api", "comfy_execution", "comfyui_version", "execution", "folder_paths"),
    *("latent_preview", "node_helpers", "nodes", "server", "aiohttp"),
}
COMFYUI_FILES = [
    ROOT / "__init__.py",
    *sorted((ROOT / "safegen_comfy").rglob("*.py")),
    *sorted((ROOT / "nodes").rglob("*.py")),
]


def comfyui_layer(*path: str) -> int | None:
    """Where a module of ours stands in ComfyUI's arrow, from its path below the root."""
    room = "extension" if path[:2] == ("safegen_comfy", "extension") else path[0]
    return COMFYUI_LAYERS.index(room) if room in COMFYUI_LAYERS else None


def comfyui_imports(file: Path) -> Iterator[tuple[str, tuple[str, ...], bool, bool]]:
    """Where, what (from the root, if relative), whether relative, whether outside of functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top_level = {id(node) for node in tree.body}
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        at = f"{file.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield at, tuple(alias.name.split(".")), False, id(node) in top_level
        elif isinstance(node, ast.ImportFrom):
            above = len(package) + 1 - node.level
            assert above >= 0 or not node.level, f"{at} climbs out of the pack"
            base = package[:above] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                target = (*base, *module, alias.name)
                yield at, target, bool(node.level), id(node) in top_level


COMFYUI_IMPORTS = [
    (file.relative_to(ROOT).with_suffix("").parts, *found)
    for file in COMFYUI_FILES
    for found in comfyui_imports(file)
]


def test_comfyuis_side_keeps_to_its_arrow():
    wrong = []
    for importer, at, target, relative, _ in COMFYUI_IMPORTS:
        if not relative:
            continue
        imported, own = comfyui_layer(*target), comfyui_layer(*importer)
        heavy = target[0] == "safegen_core" and not ABOVE_CORE.isdisjoint(target[1:2])
        if imported is None or imported > own or heavy:
            wrong.append(f"{at} imports {'.'.join(target)}")
    assert wrong == []


def test_comfyuis_side_imports_us_relatively_and_else_only_what_is_there():
    # `nodes` is ComfyUI's own module, which must be loaded before us: within functions only.
    there = COMFYUI_MODULES | CORE_PACKAGES | set(sys.stdlib_module_names)
    assert not [
        f"{at} imports {'.'.join(target)}"
        for _, at, target, relative, top_level in COMFYUI_IMPORTS
        if not relative and (target[0] not in there or (target[0] == "nodes" and top_level))
    ]


# The side of A1111 and Forge. Its packages are found by absolute names: the host puts the
# extension's folder on the path while it loads `scripts/safegen_webui.py`.
WEBUI_FILES = [*(ROOT / "safegen_webui").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]


def webui_imports() -> Iterator[tuple[str, tuple[str, ...], bool, bool]]:
    for file in sorted(WEBUI_FILES):
        yield from comfyui_imports(file)


def test_the_webuis_side_knows_the_core_and_itself_and_no_other_host():
    there = CORE_PACKAGES | set(sys.stdlib_module_names) | {"safegen_core", "safegen_webui"}
    host = {"gradio", "fastapi", "ldm", "modules", "modules_forge", "networks", "pydantic"}
    host |= {"backend", "ldm_patched", "starlette"}
    wrong = []
    for at, target, relative, top_level in webui_imports():
        ours = target[0] in ("safegen_core", "safegen_webui")
        heavy = target[0] == "safegen_core" and not ABOVE_CORE.isdisjoint(target[1:2])
        late = target[0] in there or (target[0] in host and not top_level)
        # the host has loaded `modules` when it runs the one file, which imports the other
        door = at.startswith(("scripts/", "safegen_webui/script.py"))
        if heavy or (relative and not ours) or not (late or door):
            wrong.append(f"{at} imports {'.'.join(target)}")
    assert wrong == []


def test_scripts_holds_one_file():
    names = [file.name for file in (ROOT / "scripts").iterdir() if file.name != "__pycache__"]
    assert names == ["safegen_webui.py"]


def test_the_core_does_not_reach_out_of_itself():
    climbing = [
        f"{file.relative_to(ROOT).as_posix()}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > len(file.relative_to(ROOT).parts) - 1
    ]
    assert climbing == []


@pytest.mark.parametrize("script", ["install.py", "preload.py", "safegen.py"])
def test_what_runs_outside_of_a_host_imports_none(script):
    allowed = set(sys.stdlib_module_names) | {"safegen_core"}
    asked = {"launch", "modules"} if script == "install.py" else set()  # whether they are there
    assert not [
        at
        for at, target, _, top_level in comfyui_imports(ROOT / script)
        if target[0] not in allowed and (top_level or target[0] not in asked)
    ]
