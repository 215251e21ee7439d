"""The repository's settings agree with each other, and what people download is small."""

import io
import re
import subprocess
import tarfile

import pytest
import yaml

from dev.console import ROOT

DOWNLOADED = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "NOTICE",
    "README.md",
    "__init__.py",
    "docs",
    "example_workflows",
    "locales",
    "nodes",
    "pure.py",
    "pure_core",
    "pyproject.toml",
    "requirements.txt",
    "subgraphs",
    "web",
}
"""What an archive may hold: a new file or folder is needed to use the nodes, or left out."""

MOST_BYTES = 3_000_000


def git(*arguments: str) -> bytes:
    """What git prints in this checkout."""
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout


def names(listed: bytes) -> set[str]:
    """File names that git printed with -z."""
    return set(filter(None, listed.decode().split("\0")))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone, so there is no git to ask")
def test_archives_hold_what_the_nodes_need_and_nothing_else() -> None:
    tree = git("write-tree").decode().strip()
    archive = git("archive", "--worktree-attributes", tree)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        by_git = {member.name: member.size for member in tar if member.isfile()}
    ignored = git("ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore")
    by_the_registry = names(git("ls-files", "-z")) - names(ignored)
    assert by_git.keys() == by_the_registry
    assert {name.partition("/")[0] for name in by_git} <= DOWNLOADED
    assert sum(by_git.values()) < MOST_BYTES


def test_precommit_uses_the_pinned_versions() -> None:
    constraints = (ROOT / "dev/requirements/constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", constraints, re.MULTILINE))
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: (each, hook) for each in settings["repos"] for hook in each["hooks"]}
    assert hooks["ruff-check"][0]["rev"] == hooks["ruff-format"][0]["rev"] == f"v{pinned['ruff']}"
    assert hooks["codespell"][0]["rev"] == f"v{pinned['codespell']}"
    for hook in ("deno-lint", "deno-check"):
        assert hooks[hook][1]["additional_dependencies"] == [f"deno=={pinned['deno']}"]


def test_every_paper_of_a_method_is_cited() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "pure_core").rglob("*.py")]
    papers = set(re.findall(r"arXiv\s+(\d{4}\.\d{5})", "".join(sources)))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    works = [citation["preferred-citation"], *citation["references"]]
    assert papers and papers == {work["url"].rpartition("/")[2] for work in works}
