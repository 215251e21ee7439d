"""What holds for the package as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pure_core

ROOT = Path(pure_core.__file__).parents[1]


def test_it_loads_without_comfy_and_without_what_only_pictures_need():
    code = (
        "import sys, pure_core.cli, pure_core.methods, pure_core.report;"
        "print([name for name in sys.modules if name.split('.')[0] in ('comfy', 'PIL', 'scipy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_its_version_is_the_project_s():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == pure_core.__version__


def test_requirements_are_the_project_s_dependencies():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)[1]
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [name.strip(' "') for name in listed.split(",")] == wanted
