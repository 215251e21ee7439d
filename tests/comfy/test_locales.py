"""The locales have a text for everything that the editor shows of the plugin."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dev.console import ROOT
from testbed.comfy.examples import input_names, options
from testbed.comfy.server import ComfyServer

LANGUAGES = ("ja", "ko", "zh")
KEPT = re.compile(r"\{(\w+)\}")

each_language = pytest.mark.parametrize("language", LANGUAGES)


def locale(language: str, name: str) -> dict[str, Any]:
    file = ROOT / "locales" / language / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def english() -> dict[str, str]:
    """The words of the panels, from the script that says them."""
    script = (ROOT / "web" / "text.js").read_text(encoding="utf-8")
    table = script.partition("const ENGLISH = {")[2].partition("\n}\n")[0]
    return dict(re.findall(r'(\w+): "([^"]*)"', re.sub(r'"\s*\+ "', "", table)))


def unescaped(message: str) -> str:
    """A message without its literal brackets, which would be placeholders otherwise."""
    return re.sub(r"\{'[^']*'\}", "", message)


def test_the_languages() -> None:
    assert sorted(folder.name for folder in (ROOT / "locales").iterdir()) == sorted(LANGUAGES)


@each_language
def test_every_node_and_input_is_translated(comfy_server: ComfyServer, language: str) -> None:
    ours = {
        name: definition
        for name, definition in comfy_server.get("/object_info").items()
        if name.startswith("PURE_")
    }
    translated = locale(language, "nodeDefs")
    assert translated.keys() == ours.keys()
    for name, definition in ours.items():
        texts = translated[name]
        assert texts["display_name"].startswith("PURE ")
        assert texts["description"]
        assert list(texts["inputs"]) == input_names(definition)
        for widget, words in texts["inputs"].items():
            assert words["name"]
            assert bool(words.get("tooltip")) == bool(options(definition, widget)[1].get("tooltip"))
        assert list(texts["outputs"]) == [str(k) for k in range(len(definition["output"]))]


@each_language
def test_no_message_has_a_bracket_that_the_editor_would_fill(language: str) -> None:
    def texts(part: Any) -> list[str]:
        return (
            [part] if isinstance(part, str) else [t for each in part.values() for t in texts(each)]
        )

    for text in texts(locale(language, "nodeDefs")):
        assert not re.search(r"[{}@|]", unescaped(text)), text


@each_language
def test_the_panels_words_are_translated_with_their_placeholders(language: str) -> None:
    words = locale(language, "main")["pure"]
    assert words.keys() == english().keys()
    for key, text in english().items():
        assert sorted(KEPT.findall(words[key])) == sorted(KEPT.findall(text)), key


@each_language
def test_the_server_offers_the_language(comfy_server: ComfyServer, language: str) -> None:
    offered = comfy_server.get("/i18n")[language]
    assert offered["pure"] == locale(language, "main")["pure"]
    assert offered["nodeDefs"].items() >= locale(language, "nodeDefs").items()
