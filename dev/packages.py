"""The isolated Python environment, from the pins in `dev/requirements/`.

ComfyUI 0.30.0 and 0.3.75 run on the same libraries and differ in a few packages of their own (the
web page, its templates and documents). So there is one virtual environment, and a small folder
for each version that goes ahead of it on `PYTHONPATH`.

Every pip call is held by `constraints.txt`: without it one stray requirement replaces the machine's
torch by a build for other hardware.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dev.cache import digest, entry
from dev.console import ROOT, output, run, say

REQUIREMENTS = ROOT / "dev" / "requirements"
CONSTRAINTS = REQUIREMENTS / "constraints.txt"


def venv_python(folder: Path) -> Path:
    """The Python of the virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(python: str | Path, *arguments: str | Path) -> None:
    """`pip` of that Python, held by the constraints, errors only."""
    command = [python, "-m", "pip", *arguments, "-qq", "--disable-pip-version-check"]
    run([*command, "-c", CONSTRAINTS], "pip")


def environment() -> Path:
    """Python of the environment that runs both versions; built the first time (minutes)."""
    files = [REQUIREMENTS / f"{name}.txt" for name in ("environment", "no-dependencies", "tools")]
    tag = f"py{sys.version_info.major}.{sys.version_info.minor}"
    name = f"environment-{tag}-{digest(sys.executable, CONSTRAINTS, *files)}"

    def build(folder: Path) -> None:
        say(f"installing torch, ComfyUI's libraries and the test tools into {folder}")
        run([sys.executable, "-m", "venv", folder], "making a virtual environment (python3-venv)")
        python = venv_python(folder)
        environment_file, no_dependencies, tools = files
        pip(python, "install", "-r", environment_file, "-r", tools)
        pip(python, "install", "--no-deps", "-r", no_dependencies)
        drop_foreign_audio(python)

    return venv_python(entry(name, build))


def drop_foreign_audio(python: Path) -> None:
    """Remove torchaudio's compiled half if it was built for another torch than the one installed.

    Its Python half then imports, which is all that ComfyUI's start needs.
    """
    find = (
        "import importlib.util as u; print(u.find_spec('torchaudio').submodule_search_locations[0])"
    )
    if imports(python, "torchaudio"):
        return
    say("torchaudio's compiled part does not fit this torch: using its Python part alone")
    for library in (Path(output([python, "-c", find], "finding torchaudio")) / "lib").glob("*.so"):
        library.unlink()


def imports(python: str | Path, module: str) -> bool:
    """Whether that Python imports `module` without an error."""
    probe = f"try:\n import {module}\nexcept Exception:\n print('no')\nelse:\n print('yes')"
    return output([python, "-c", probe], f"importing {module}").splitlines()[-1:] == ["yes"]


def overlay(version: str) -> Path:
    """Folder with the packages that belong to that ComfyUI version alone, for `PYTHONPATH`."""
    requirements = REQUIREMENTS / f"comfy-{version}.txt"

    def build(folder: Path) -> None:
        say(f"installing the web page of ComfyUI {version}")
        pip(environment(), "install", "--no-deps", "--target", folder, "-r", requirements)

    return entry(f"packages-{version}-{digest(requirements)}", build)


def tools(python: str | Path) -> Path:
    """Folder with the test tools alone, for a person's own Python that may lack them."""
    requirements = REQUIREMENTS / "tools.txt"
    tag = output([python, "-c", "import sys; print('py%d.%d' % sys.version_info[:2])"], "Python")

    def build(folder: Path) -> None:
        say(f"installing the test tools for {python}")
        pip(python, "install", "--target", folder, "-r", requirements)

    return entry(f"tools-{tag}-{digest(str(python), CONSTRAINTS, requirements)}", build)
