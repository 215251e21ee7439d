"""What was started is ended on every way out, with whatever it started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dev.console import ROOT
from dev.processes import started

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GRANDCHILD = "import time; time.sleep(60)"
CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {grandchild!r}])
print(child.pid, flush=True)
{then}
"""
PARENT = """
import os, sys
from dev.commands import interrupt
from dev.processes import started
import signal
from pathlib import Path
signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
with started([sys.executable, "-c", {child!r}], Path("."), os.environ) as process:
    process.wait()
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether it ends within some seconds."""
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def child(then: str = "time.sleep(60)") -> str:
    return CHILD.format(grandchild=GRANDCHILD, then=then)


def test_leaving_the_block_ends_grandchildren() -> None:
    command = [sys.executable, "-c", child()]
    with started(command, ROOT, os.environ, stdout=subprocess.PIPE, text=True) as process:
        grandchild = int(process.stdout.readline())
        assert alive(grandchild)
    assert gone(grandchild) and process.returncode is not None


def test_a_program_that_has_ended_leaves_nothing_running() -> None:
    command = [sys.executable, "-c", child("")]
    with started(command, ROOT, os.environ, stdout=subprocess.PIPE, text=True) as process:
        grandchild = int(process.stdout.readline())
        process.wait()
        assert alive(grandchild)
    assert gone(grandchild)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_reaches_everything(number: signal.Signals) -> None:
    code = PARENT.format(child=child())
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    grandchild = int(parent.stdout.readline())
    assert alive(grandchild)
    parent.send_signal(number)
    parent.wait(timeout=30)
    assert gone(grandchild)
