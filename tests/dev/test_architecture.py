"""Who imports whom: nothing points upwards, nothing goes in a circle, and the page shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev import imports
from dev.console import ROOT

GRAPH = imports.import_graph(ROOT)


def project(root: Path, **files: str) -> Path:
    """A small project; in the names of the files two underscores are a slash."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_arrow_points_upwards() -> None:
    assert imports.upward(GRAPH) == []


def test_modules_do_not_import_each_other() -> None:
    assert imports.circles(GRAPH) == []


def test_the_graph_sees_every_room() -> None:
    """Otherwise the tests above could not fail."""
    rooms = {imports.room(module) for module in GRAPH}
    assert rooms == set(imports.ROOMS)
    assert "pure_core.eraser" in GRAPH["nodes.host.patch"]
    assert "nodes.host.patch" in GRAPH["nodes.patch"]


def test_only_families_know_the_names_of_projections() -> None:
    found = imports.naming_projections(ROOT)
    assert found and all(name.startswith("pure_core/families/") for name in found)


def test_the_page_shows_the_code_as_it_is() -> None:
    page = imports.PAGE.read_text(encoding="utf-8")
    assert page == imports.written(page, ROOT), "run: python3 -m dev.imports --write"


@pytest.mark.parametrize(
    "files, arrow",
    [
        ({"pure_core__a": "from ..nodes import b", "nodes__b": ""}, "pure_core.a -> nodes.b"),
        ({"nodes__host__a": "from ..b import c", "nodes__b": ""}, "nodes.host.a -> nodes.b"),
        ({"dev__a": "def f():\n    import testbed.b", "testbed__b": ""}, "dev.a -> testbed.b"),
        ({"nodes__a": "from dev.b import c", "dev__b": ""}, "nodes.a -> dev.b"),
        ({"testbed__a": "import tests.b", "tests__b": ""}, "testbed.a -> tests.b"),
    ],
)
def test_an_arrow_upwards_is_found(tmp_path: Path, files: dict[str, str], arrow: str) -> None:
    assert imports.upward(imports.import_graph(project(tmp_path, **files))) == [arrow]
    assert imports.main([str(tmp_path)]) == 1


def test_arrows_downwards_and_comfyui_s_own_nodes_are_fine(tmp_path: Path) -> None:
    root = project(
        tmp_path,
        nodes__a="from ..pure_core.b import c\nfrom .host import d",
        nodes__host__d="",
        pure_core__b="",
        testbed__e="import nodes\nfrom comfyui_pure.nodes.a import f",
    )
    graph = imports.import_graph(root)
    assert graph["testbed.e"] == {"nodes.a"}
    assert graph["nodes.a"] == {"pure_core.b", "nodes.host.d"}
    assert imports.main([str(root)]) == 0


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "pure_core__a": "from .b import x",
        "pure_core__b": "from .c import x",
        "pure_core__c": "def f():\n    from . import a",
        "pure_core__d": "from .a import x",
    }
    graph = imports.import_graph(project(tmp_path, **files))
    assert imports.circles(graph) == [["pure_core.a", "pure_core.b", "pure_core.c"]]
