"""The browser that the editor tests drive."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dev.console import say

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> Path | None:
    """A Chromium on this machine: `PURE_CHROMIUM`, else by name on PATH."""
    if chosen := os.environ.get("PURE_CHROMIUM"):
        return Path(chosen)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return Path(found) if found else None


def provide_browser() -> Path | None:
    """A Chromium, installed from the system's packages where this runs as root.

    Without one the tests of the editor are skipped, and the message says how to get it.
    """
    if browser := find_browser():
        return browser
    apt = shutil.which("apt-get")
    if apt and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("installing chromium for the editor tests")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run([apt, "-qq", *command], env=env, check=False, stdout=subprocess.DEVNULL)
        if browser := find_browser():
            return browser
    say(
        "no Chromium found: the tests of the editor will be skipped. Install chromium with the "
        "system's package manager, or set PURE_CHROMIUM to a Chromium or Chrome."
    )
    return None
