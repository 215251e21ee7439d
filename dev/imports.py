"""The map of the code, from its own imports: python3 -m dev.imports [--write] [FOLDER]

Prints who imports whom, folder by folder, as a Markdown table and a Mermaid diagram, and which
files of the product name a projection of the U-Net. `--write` puts it into `docs/architecture.md`.
Exit status 1 if an arrow points upwards, or if modules import each other in a circle.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dev.console import ROOT

PLUGIN = "comfyui_pure"
"""What tests call the plugin as a package: see `testbed/comfy/inprocess.py`."""

ROOMS = ("pure_core", "nodes", "dev", "testbed", "benchmarks", "tests")

FORBIDDEN = {
    "pure_core": ("nodes", "dev", "testbed", "benchmarks", "tests"),
    "nodes": ("dev", "testbed", "benchmarks", "tests"),
    "dev": ("nodes", "testbed", "benchmarks", "tests"),
    "testbed": ("benchmarks", "tests"),
    "benchmarks": ("tests",),
}
"""Room -> the rooms above it, which it must not know."""

HOST = "nodes.host"
"""Must not know the rest of `nodes`."""

PRODUCT = ("pure_core", "nodes")
PROJECTION = re.compile(r"to_[kv](?![a-zA-Z])|attn2")
"""Names of a U-Net's modules, which only its family should know."""

Graph = Mapping[str, set[str]]
"""Module -> the modules of the project that it imports; or folder -> folders."""

PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- python3 -m dev.imports --write -->", "<!-- end -->"
"""Around what `--write` writes into the page."""


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for everything in the rooms."""
    found = {}
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Who imports whom. Imports inside functions count, those for the type checker do not."""
    files = modules(root)
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = (full for node in _walk(tree) for full in _imported(node, package))
        graph[name] = {found for full in named if (found := _module(full, files))} - {name}
    return graph


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _walk(child)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    """The full names that a statement imports, as far as they may be the project's."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _own(alias.name)
    elif isinstance(node, ast.ImportFrom) and node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for base in _own(node.module or ""):
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _own(name: str) -> Iterator[str]:
    """An absolute name without the plugin's package. `nodes` alone is ComfyUI's own module."""
    inside = name.removeprefix(f"{PLUGIN}.")
    if inside != name or name.partition(".")[0] != "nodes":
        yield inside


def _module(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a full name is or lies in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def room(module: str) -> str:
    """The first folder of a module."""
    return module.partition(".")[0]


def folder(module: str, files: Mapping[str, Path], root: Path) -> str:
    """The folder of a module's file."""
    return files[module].parent.relative_to(root).as_posix()


def upward(graph: Graph) -> list[str]:
    """The imports that point upwards, as 'a -> b'."""
    return [
        f"{one} -> {other}"
        for one, others in sorted(graph.items())
        for other in sorted(others)
        if room(other) in FORBIDDEN.get(room(one), ())
        or (_in_host(one) and room(other) == "nodes" and not _in_host(other))
    ]


def _in_host(module: str) -> bool:
    return module == HOST or module.startswith(f"{HOST}.")


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan's strong components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def folders(root: Path) -> dict[str, set[str]]:
    """Folder -> the other folders that it imports from."""
    files = modules(root)
    found: dict[str, set[str]] = {}
    for module, others in import_graph(root).items():
        here = folder(module, files, root)
        there = {folder(other, files, root) for other in others}
        found.setdefault(here, set()).update(there - {here})
    return dict(sorted(found.items()))


def naming_projections(root: Path) -> list[str]:
    """The files of the product that name a projection of a model."""
    files = (file for part in PRODUCT for file in sorted((root / part).rglob("*.py")))
    return [
        file.relative_to(root).as_posix()
        for file in files
        if PROJECTION.search(file.read_text(encoding="utf-8"))
    ]


def table(arrows: Graph) -> str:
    """As Markdown."""
    rows = ["| folder | imports from |", "| --- | --- |"]
    for name, others in arrows.items():
        listed = ", ".join(f"`{other}`" for other in sorted(others))
        rows.append(f"| `{name}` | {listed or 'nothing'} |")
    return "\n".join(rows)


def diagram(arrows: Graph) -> str:
    """As Mermaid, without tests and benchmarks, which may import everything."""
    shown = [name for name in arrows if name.partition("/")[0] not in ("tests", "benchmarks")]
    lines = ["```mermaid", "graph TD"]
    lines += [
        f"    {_node(name)} --> {_node(other)}"
        for name in shown
        for other in sorted(arrows[name])
        if other in shown
    ]
    return "\n".join([*lines, "```"])


def _node(name: str) -> str:
    return f'{name.replace("/", "_")}["{name}"]'


def report(root: Path) -> str:
    """Everything that `docs/architecture.md` shows of the imports."""
    arrows, graph = folders(root), import_graph(root)
    named = naming_projections(root)
    return "\n\n".join(
        [
            table(arrows),
            diagram(arrows),
            _listed("Arrows upwards", upward(graph)),
            _listed("Circles", [", ".join(group) for group in circles(graph)]),
            _listed("Files that name a projection of a model", named),
        ]
    )


def _listed(what: str, found: Iterable[str]) -> str:
    every = list(found)
    return f"{what}: {len(every)}{''.join(f'{chr(10)}- `{each}`' for each in every)}"


def written(page: str, root: Path) -> str:
    """The page with the report between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{report(root)}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Print or write the report; 1 if something is wrong with the arrows."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.imports", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="a checkout")
    parser.add_argument("--write", action="store_true", help="into docs/architecture.md")
    options = parser.parse_args(arguments)
    root = options.folder.resolve()
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), root), encoding="utf-8")
    else:
        print(report(root))
    graph = import_graph(root)
    return 1 if upward(graph) or circles(graph) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
