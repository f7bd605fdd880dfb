# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of `locales/` fit the nodes of a real server, in every language.

`python tests/hosts/comfyui/test_locales.py URL` writes `locales/en/nodeDefs.json` anew from the
nodes of a running ComfyUI.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh", "ja", "ko")
# What makes a text of the front end's message format (vue-i18n) more than a text.
SPECIAL = re.compile(r"[@{}|]")


def words(info: dict[str, Any]) -> dict[str, Any]:
    """What `nodeDefs.json` says in English, from the server's `/object_info`."""
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: {"name": given[1].get("display_name") or key, "tooltip": given[1]["tooltip"]}
                for section in ("required", "optional")
                for key, given in node["input"].get(section, {}).items()
            },
            "outputs": {
                str(at): {"name": output, "tooltip": tooltip}
                for at, (output, tooltip) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
        for name, node in info.items()
        if name.startswith("SafeGen")
    }


def texts(tree: Any, path: str = "") -> dict[str, str]:
    """Every text of a locale file by its place."""
    if isinstance(tree, str):
        return {path: tree}
    return {k: v for key, part in tree.items() for k, v in texts(part, f"{path}/{key}").items()}


@pytest.fixture
def english(client):
    """The nodes' own words."""
    return words(client.get("/object_info"))


@pytest.fixture
def served(client):
    """What the server hands to the front end, of all packs."""
    return client.get("/i18n")


def test_english_is_what_the_nodes_say(english):
    file = LOCALES / "en" / "nodeDefs.json"
    assert json.loads(file.read_text(encoding="utf-8")) == english, f"run: {__file__} URL"


def test_nothing_is_without_a_tooltip(english):
    assert [place for place, text in texts(english).items() if not text.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_all_words_and_no_others(english, served, language):
    ours = {name: node for name, node in served[language]["nodeDefs"].items() if name in english}
    assert texts(ours).keys() == texts(english).keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_and_only_a_text(served, language):
    ours = {name: node for name, node in served[language]["nodeDefs"].items() if "SafeGen" in name}
    for place, text in texts(ours).items():
        assert text.strip(), place
        assert not SPECIAL.search(text), f"{language}{place}: {text}"


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_sentences_are_translated(english, served, language):
    theirs = texts({name: served[language]["nodeDefs"][name] for name in english})
    for place, text in texts(english).items():
        if place.endswith(("/tooltip", "/description")):
            assert theirs[place] != text, place


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_entries_of_menus_are_explained_under_their_own_names(client, english, served, language):
    explained = 0
    for name in english:
        inputs = client.object_info(name)["input"]
        for key, given in {**inputs["required"], **inputs.get("optional", {})}.items():
            for entry in given[1].get("options", ()):
                if f"{entry}:" in given[1]["tooltip"]:  # menus are not translated
                    theirs = served[language]["nodeDefs"][name]["inputs"][key]["tooltip"]
                    assert re.search(rf"\b{entry} ?[:：]", theirs), (
                        f"{language} {name} {key} {entry}"
                    )
                    explained += 1
    assert explained


def test_settings_are_the_same_in_every_language(served):
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "web/js").glob("*.js"))
    keys = [{k for k in served[lang]["settings"] if k.startswith("SafeGen_")} for lang in LANGUAGES]
    assert keys[0]
    assert all(one == keys[0] for one in keys)
    for key in keys[0]:
        assert f'"{key.replace("_", ".")}"' in code
        assert served["en"]["settings"][key]["name"] in code


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_under_its_name(client, english, served, language):
    scripts = client.get("/extensions")
    (folder,) = {path.split("/")[2] for path in scripts if path.endswith("/js/safegen.js")}
    for name in english:
        # as the front end asks for it
        page = f"{name}.md" if language == "en" else f"{name}/{language}.md"
        told = client.get_bytes(f"/extensions/{folder}/docs/{page}").decode("utf-8")
        lines = told.splitlines()
        assert lines[0] == f"# {served[language]['nodeDefs'][name]['display_name']}", page
        assert len(lines) >= 10


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as answer:
        told = words(json.load(answer))
    (LOCALES / "en" / "nodeDefs.json").write_text(
        json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )
