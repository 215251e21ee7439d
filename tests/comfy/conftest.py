"""Every test here runs inside a real ComfyUI: `python3 dev.py test` prepares it and says which."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

if not os.environ.get("PURE_COMFY_PATH"):
    raise pytest.UsageError(
        "tests/comfy need a ComfyUI. Run them with: python3 dev.py test -- tests/comfy"
    )

from testbed.comfy import inprocess
from testbed.comfy.server import ComfyServer

inprocess.enter()

from testbed.comfy import stock
from testbed.comfy.erasers import Pair
from testbed.comfy.stock import Loaded, Prompts


@pytest.fixture(scope="session")
def comfy_server() -> Iterator[ComfyServer]:
    """One ComfyUI server with the plugin, started when the first test asks for it."""
    with ComfyServer() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's executable."""
    path = os.environ.get("PURE_CHROMIUM")
    if not path:
        pytest.skip("no Chromium; install it or set PURE_CHROMIUM to a Chromium or Chrome")
    return path


@pytest.fixture(scope="session")
def comfy_version() -> tuple[int, ...]:
    """The running ComfyUI's version, for example (0, 3, 75)."""
    return tuple(int(part) for part in os.environ["PURE_COMFY_VERSION"].split(".")[:3])


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The shipped model, as ComfyUI's `CheckpointLoaderSimple` finds it by its name."""
    return Path(os.environ["PURE_CHECKPOINT"])


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> Loaded:
    """The shipped model, loaded once for all tests: none may change it."""
    return stock.load(checkpoint)


@pytest.fixture(scope="session")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The shipped model's U-Net and an erased copy of its file: no test may change them."""
    return Pair.make(checkpoint, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def prompts(loaded: Loaded) -> Prompts:
    """Three prompts, encoded by the shipped model's text encoder."""
    words = ("a red ball on a meadow", "a blue star", "")
    return Prompts(*(stock.text(loaded.clip, each) for each in words))


@pytest.fixture(scope="session")
def plain(pair: Pair, prompts: Prompts) -> Tensor:
    """Latents of the erased file with nothing around it."""
    return stock.ksampler(pair.erased, prompts.positive, prompts.negative)
