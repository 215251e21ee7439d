"""Start ComfyUI, or any script or module, inside the prepared environment.

Run with the environment's own Python::

    python dev/launch.py comfy [ComfyUI's arguments]
    python dev/launch.py script FILE [arguments]
    python dev/launch.py module NAME [arguments]

`dev.py` says through environment variables where ComfyUI is (`PURE_COMFY_PATH`), which folder
holds this checkout's models, custom nodes and outputs (`PURE_BASE_DIR`) and on what to compute
(`PURE_DEVICE`). Nothing here imports torch before ComfyUI does unless torchvision needs help.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

VISION_OPERATORS = ("nms", "qnms")
VISION_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> None:
    """Let torchvision import where only a build for another torch is to be had.

    A registry that offers a CPU-only torch may offer torchvision for CUDA alone. Its Python half
    works without its compiled half, but registers shape functions for two operators that then do
    not exist. They are declared here, with no implementation, when the plain import fails.
    ComfyUI needs torchvision only to import; nothing this project runs calls these operators.
    """
    try:
        import torchvision  # type: ignore[import-untyped]
    except (ImportError, OSError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        make: Any = torch.library.Library
        library = make("torchvision", "DEF")
        for operator in VISION_OPERATORS:
            library.define(operator + VISION_SIGNATURE)
        import torchvision

        torchvision._pure_operators = library  # the declarations live as long as this object


def comfy_arguments(base: Path, device: str) -> list[str]:
    """Arguments of ComfyUI's `main.py` that every start of ours shares."""
    arguments = ["--base-directory", str(base), "--disable-api-nodes"]  # those call paid services
    arguments += ["--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
    if (base / "extra_model_paths.yaml").is_file():
        arguments += ["--extra-model-paths-config", str(base / "extra_model_paths.yaml")]
    if device == "cpu":
        arguments.append("--cpu")
    return arguments


def environment_arguments() -> tuple[Path, list[str]]:
    """ComfyUI's folder and the shared arguments, from the variables `dev.py` sets."""
    missing = [name for name in ("PURE_COMFY_PATH", "PURE_BASE_DIR") if not os.environ.get(name)]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not set: start this through dev.py.")
    tree, base = Path(os.environ["PURE_COMFY_PATH"]), Path(os.environ["PURE_BASE_DIR"])
    return tree, comfy_arguments(base, os.environ.get("PURE_DEVICE", "cpu"))


def enter_comfy() -> None:
    """Make this process a ComfyUI process without a server.

    Afterwards `import comfy`, `import folder_paths` and `import nodes` (ComfyUI's) work and
    behave as in a server started with the same arguments.
    """
    tree, arguments = environment_arguments()
    if os.environ.get("PURE_DECLARE_OPERATORS") == "1":
        declare_missing_operators()
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))  # before the checkout, whose `nodes/` has the same name
    own_tests = ModuleType("tests")  # the tree has a `tests` too; ours holds the small model
    own_tests.__path__ = [str(ROOT / "tests")]
    sys.modules.setdefault("tests", own_tests)

    import comfy.options

    comfy.options.enable_args_parsing()
    own = sys.argv
    sys.argv = ["main.py", *arguments]
    try:
        import comfy.cli_args
    finally:
        sys.argv = own

    # As main.py does: nodes.py puts comfy/ itself first on the path, where a utils.py hides this.
    import utils.extra_config  # type: ignore[import-not-found]  # noqa: F401


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that was ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def run_comfy(extra: list[str]) -> None:
    """Run ComfyUI's `main.py` as the main program, with the shared arguments and `extra`."""
    end_with_parent()
    tree, arguments = environment_arguments()
    if os.environ.get("PURE_DECLARE_OPERATORS") == "1":
        declare_missing_operators()
    sys.path[0] = str(tree)
    sys.argv = [str(tree / "main.py"), *arguments, *extra]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Dispatch `comfy`, `script FILE` or `module NAME`."""
    match arguments:
        case ["comfy", *rest]:
            run_comfy(rest)
        case ["script", path, *rest]:
            sys.path[0] = str(ROOT)
            enter_comfy()
            sys.argv = [path, *rest]
            runpy.run_path(path, run_name="__main__")
        case ["module", name, *rest]:
            sys.path[0] = str(ROOT)
            enter_comfy()
            sys.argv = [name, *rest]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
