"""Which ComfyUI to run, with which Python, on what: everything a started program must know."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dev import packages, releases
from dev.console import ROOT, SetupError, link_to_checkout, output
from dev.model import DRAWN, PICTURES, place_models

DEV = ROOT / ".dev"
"""What belongs to this checkout alone; ignored by git."""

OWN_MODEL_FOLDERS = (
    "checkpoints",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "embeddings",
    "loras",
    "text_encoders",
    "upscale_models",
    "vae",
)


@dataclass(frozen=True)
class ComfyUI:
    """One ComfyUI, ready to be started through `dev/launch.py`."""

    version: str
    tree: Path
    python: Path
    base: Path
    """This checkout's own custom_nodes, models, input, output and user folders."""
    packages: Path
    """Goes ahead of the environment on PYTHONPATH."""
    checkpoint: Path | None
    """The drawn world's model, where ComfyUI finds it."""

    def environment(self, device: str) -> dict[str, str]:
        """The variables `dev/launch.py`, the tests and the demo read."""
        path = [str(self.packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "PURE_COMFY_PATH": str(self.tree),
            "PURE_COMFY_VERSION": self.version,
            "PURE_BASE_DIR": str(self.base),
            "PURE_CHECKPOINT": str(self.checkpoint or ""),
            "PURE_DEVICE": self.device(device),
            "PURE_DECLARE_OPERATORS": "" if imports_torchvision(self.python) else "1",
            "PYTHONPATH": os.pathsep.join(path),
            # ComfyUI asks for neither, some libraries it imports do.
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }

    def device(self, wish: str) -> str:
        """`cpu` or `gpu`; `auto` takes the graphics card when that torch can use one."""
        if wish == "auto":
            return "gpu" if sees_accelerator(self.python) else "cpu"
        return wish

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Command line of `dev/launch.py` in this ComfyUI's Python."""
        return [self.python, ROOT / "dev" / "launch.py", *arguments]


@functools.cache
def imports_torchvision(python: Path) -> bool:
    """Whether torchvision imports without help (see `dev/launch.py`)."""
    return packages.imports(python, "torchvision")


@functools.cache
def sees_accelerator(python: Path) -> bool:
    """Whether that Python's torch has a CUDA, ROCm, XPU or Apple device at hand."""
    probe = "import torch; print(getattr(torch, 'accelerator', torch.cuda).is_available())"
    return output([python, "-c", probe], "asking torch for a graphics card") == "True"


def provide(wanted: str) -> list[ComfyUI]:
    """The ComfyUI versions to use: `COMFYUI_PATH` if it is set, else the pinned ones asked for."""
    if os.environ.get("COMFYUI_PATH"):
        return [own()]
    return [pinned(version) for version in releases.RELEASES if wanted in (version, "both")]


def pinned(version: str) -> ComfyUI:
    """A pinned version in the tool's own environment."""
    python = packages.environment()
    base = base_folder(version)
    return ComfyUI(
        version=version,
        tree=releases.tree(version),
        python=python,
        base=base,
        packages=packages.overlay(version),
        checkpoint=place_worlds(python, base),
    )


def own() -> ComfyUI:
    """The person's ComfyUI at `COMFYUI_PATH`; nothing in it is changed.

    Its model folders are read beside this checkout's; its custom nodes are not loaded.
    """
    tree = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if not (tree / "main.py").is_file() or not (tree / "comfyui_version.py").is_file():
        raise SetupError(f"COMFYUI_PATH={tree}: expected the folder that holds ComfyUI's main.py.")
    python = own_python()
    base = base_folder("own")
    write_model_paths(tree, base / "extra_model_paths.yaml")
    return ComfyUI(
        version=stated_version(tree),
        tree=tree,
        python=python,
        base=base,
        packages=packages.tools(python),
        checkpoint=place_worlds(python, base),
    )


def own_python() -> Path:
    """The Python that runs the person's ComfyUI: `COMFYUI_PYTHON`, else the one running this."""
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable).expanduser().absolute()
    if not packages.imports(python, "torch"):
        raise SetupError(
            f"{python} has no working torch. Set COMFYUI_PYTHON to the Python that runs the "
            "ComfyUI at COMFYUI_PATH (for example its venv/bin/python)."
        )
    return python


def stated_version(tree: Path) -> str:
    """`__version__` of a ComfyUI folder, read without running it."""
    for node in ast.parse((tree / "comfyui_version.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    raise SetupError(f"{tree / 'comfyui_version.py'} states no version.")


def write_model_paths(tree: Path, path: Path) -> None:
    """ComfyUI's own file format for model folders elsewhere, naming those of `tree`."""
    lines = ["own:", f"    base_path: {str(tree / 'models')!r}"]
    lines += [f"    {name}: {name}" for name in OWN_MODEL_FOLDERS]
    path.write_text("\n".join(lines) + "\n")


def base_folder(name: str) -> Path:
    """This checkout's folder for one ComfyUI: the plugin linked in, the workflows copied."""
    base = DEV / name
    for part in ("custom_nodes", "models/checkpoints", "input", "output", "user/default/workflows"):
        (base / part).mkdir(parents=True, exist_ok=True)
    link_to_checkout(base / "custom_nodes" / "comfyui-pure")
    for workflow in sorted((ROOT / "example_workflows").glob("*.json")):
        copy = base / "user" / "default" / "workflows" / workflow.name
        if not copy.exists():  # the person may have saved it again with changes
            shutil.copyfile(workflow, copy)
    return base


def place_worlds(python: Path, base: Path) -> Path | None:
    """Put the shipped models into the base folder; the drawn world's checkpoint."""
    drawn, _ = (place_models(world, python, DEV, base / "models") for world in (DRAWN, PICTURES))
    return drawn[0] if drawn else None
