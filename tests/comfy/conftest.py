"""Every test here runs inside a real ComfyUI: `python3 dev.py test` prepares it and says which."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if not os.environ.get("PURE_COMFY_PATH"):
    raise pytest.UsageError(
        "tests/comfy need a ComfyUI. Run them with: python3 dev.py test -- tests/comfy"
    )

from dev.server import ComfyServer
from tests.comfy import inprocess

inprocess.enter()

from tests.comfy import stock
from tests.comfy.stock import Loaded


@pytest.fixture(scope="session")
def comfy_server() -> Iterator[ComfyServer]:
    """One ComfyUI server with the plugin, started when the first test asks for it."""
    with ComfyServer() as server:
        yield server


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
