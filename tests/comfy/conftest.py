"""Every test here runs inside a real ComfyUI: `python dev.py test` prepares it and says which."""

from __future__ import annotations

import os

import pytest

if not os.environ.get("PURE_COMFY_PATH"):
    raise pytest.UsageError(
        "tests/comfy need a ComfyUI. Run them with: python3 dev.py test -- tests/comfy"
    )

from tests.comfy import inprocess

inprocess.enter()
