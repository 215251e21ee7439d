"""The command line of `dev.py`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dev import checks, comfyui
from dev.browser import provide_browser
from dev.cache import cache_folder
from dev.console import ROOT, SetupError, fail, merged, say
from dev.processes import started
from dev.releases import RELEASES

NEWEST = next(iter(RELEASES))


def parser() -> argparse.ArgumentParser:
    """Commands and choices."""
    top = argparse.ArgumentParser(
        prog="dev.py",
        description="A real ComfyUI with this plugin and the shipped model, to try and to test.",
        epilog=(
            "COMFYUI_PATH (and COMFYUI_PYTHON) use your own ComfyUI instead of the pinned ones; "
            "PURE_CACHE moves the cache of downloads and environments."
        ),
    )
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, help: str, comfy: str, rest: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument(
            "--comfy",
            choices=[*RELEASES, "both"],
            default=comfy,
            help="which pinned ComfyUI (default: %(default)s)",
        )
        if name != "setup":
            command.add_argument(
                "--device",
                choices=["auto", "cpu", "gpu"],
                default="auto",
                help="where ComfyUI computes (default: a graphics card if torch sees one)",
            )
        command.set_defaults(rest=[])
        if rest:
            command.epilog = f"Words after -- go to {rest}."
        return command

    add("setup", "prepare the environment, ComfyUI and the shipped model", "both")
    add("demo", "erase concepts and write before/after pictures and a table", NEWEST, "the demo")
    add("test", "run every check and test", "both", "pytest")
    serve = add("serve", "open ComfyUI with the plugin and the model", NEWEST, "ComfyUI")
    serve.add_argument("--port", type=int, default=8188, help="on 127.0.0.1 (default: 8188)")
    add("docs", "write the tables of the docs that methods declare themselves", NEWEST)
    script = add("run", "run a Python file inside ComfyUI, without a server", NEWEST, "the file")
    script.add_argument("file", help="the Python file")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    options = parser().parse_args(words[:cut])
    options.rest = words[cut + 1 :]
    signal.signal(signal.SIGTERM, interrupt)  # so that what was started is ended as with Ctrl-C
    try:
        return COMMANDS[options.command](options)
    except SetupError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a request to end into KeyboardInterrupt."""
    raise KeyboardInterrupt


def setup(options: argparse.Namespace) -> int:
    """Prepare everything; what is there already is left alone."""
    started = time.monotonic()
    for comfy in comfyui.provide(options.comfy):
        say(f"ComfyUI {comfy.version}: {comfy.tree}")
        say(f"    python: {comfy.python}")
        say(f"    models, outputs and the plugin's link: {comfy.base}")
    provide_browser()
    say(f"ready in {time.monotonic() - started:.1f} s; cache: {cache_folder()}")
    return 0


def demo(options: argparse.Namespace) -> int:
    """Run `testbed/demo.py` in each ComfyUI asked for."""
    status = 0
    for comfy in comfyui.provide(options.comfy):
        say(f"demo on ComfyUI {comfy.version}")
        command = [comfy.python, "-m", "testbed.demo", *options.rest]
        status = attend(command, comfy.environment(options.device)) or status
    return status


def test(options: argparse.Namespace) -> int:
    """Style, types and tests; with test files named after `--`, those tests alone."""
    comfies = comfyui.provide(options.comfy)
    pure, comfy, rest = checks.split_selection(options.rest)
    whole = not pure and not comfy
    first = comfies[0]
    env = first.environment(options.device)
    stages, versions = [], []
    if whole:
        stages += checks.lint_stages(first.python, env)
        pure = [folder for folder in checks.PURE_TESTS if any((ROOT / folder).glob("test_*.py"))]
        comfy = [checks.COMFY_TESTS] if any((ROOT / checks.COMFY_TESTS).glob("test_*.py")) else []
    if pure:
        stages.append(checks.pytest_stage("pytest", first.python, env, [*pure, *rest]))
    if comfy:
        browser = {"PURE_CHROMIUM": str(provide_browser() or "")}
        for version in comfies:
            name = f"pytest in ComfyUI {version.version}"
            env = {**version.environment(options.device), **browser}
            versions.append(checks.pytest_stage(name, version.python, env, [*comfy, *rest]))
    outcomes = [checks.run_stage(stage) for stage in stages]
    return checks.report([*outcomes, *checks.run_beside(versions)])


def serve(options: argparse.Namespace) -> int:
    """ComfyUI on loopback until Ctrl-C."""
    if options.comfy == "both":
        raise SetupError("serve starts one ComfyUI: --comfy 0.30.0 or --comfy 0.3.75.")
    (comfy,) = comfyui.provide(options.comfy)
    port = free_port(options.port)
    address = f"http://127.0.0.1:{port}/"
    server = ["comfy", "--listen", "127.0.0.1", "--port", str(port), *options.rest]
    env = merged(comfy.environment(options.device))
    with started(comfy.command(*server), comfy.base, env) as process:
        if wait_for(address, process):
            say(f"ComfyUI {comfy.version} is open at {address} (Ctrl-C ends it)")
        return process.wait()


def docs(options: argparse.Namespace) -> int:
    """Write what the docs say of methods."""
    comfy = comfyui.provide(options.comfy)[0]
    return attend([comfy.python, "-m", "dev.method_docs"], comfy.environment(options.device))


def run_file(options: argparse.Namespace) -> int:
    """Run a file as `__main__` in the process of a ComfyUI that serves nothing."""
    status = 0
    for comfy in comfyui.provide(options.comfy):
        command = comfy.command("script", options.file, *options.rest)
        status = attend(command, comfy.environment(options.device)) or status
    return status


def attend(command: Sequence[str | Path], env: dict[str, str]) -> int:
    """Run a program to its end and end it if this one is ended; its exit status."""
    with started(command, ROOT, merged(env)) as process:
        return process.wait()


def free_port(wish: int) -> int:
    """`wish`, or the next port after it that nothing listens on."""
    for port in range(wish, wish + 100):
        with socket.socket() as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SetupError(f"no free port from {wish} to {wish + 99}; choose another with --port.")


def wait_for(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it ended instead."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address + "system_stats", timeout=5):
                return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    return False


COMMANDS = {
    "setup": setup,
    "demo": demo,
    "test": test,
    "serve": serve,
    "docs": docs,
    "run": run_file,
}
