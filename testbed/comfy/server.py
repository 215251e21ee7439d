"""A ComfyUI server as a subprocess, and a client that queues prompts and follows them.

Runs in the prepared environment (`aiohttp` comes with ComfyUI)::

    with ComfyServer() as server:
        run = server.run(prompt)
        picture = server.image(run.images("9")[0])
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from dev.console import ROOT

Prompt = Mapping[str, Mapping[str, Any]]
"""A graph in ComfyUI's API format: node id -> {"class_type": ..., "inputs": ...}."""

NOTHING: Prompt = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
"""A prompt that needs no model."""


class ServerError(RuntimeError):
    """The server did not start, refused a prompt or went away; the message ends with its log."""


@dataclass(frozen=True)
class Message:
    """One message of the server about a prompt, such as `executing` or `progress`."""

    type: str
    data: dict[str, Any]


@dataclass
class Run:
    """What came of one queued prompt."""

    prompt_id: str
    messages: list[Message] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By node id, as in ComfyUI's history."""
    status: str = ""
    """`success` or `error`, as in ComfyUI's history; an interrupted run is an error there."""

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The data of every message of that type, in order."""
        return [message.data for message in self.messages if message.type == kind]

    @property
    def executed(self) -> list[str]:
        """Node ids that ran, in order; a cached node is not among them."""
        return [data["node"] for data in self.of_type("executing") if data.get("node")]

    @property
    def cached(self) -> set[str]:
        """Node ids taken from ComfyUI's cache."""
        return {node for data in self.of_type("execution_cached") for node in data["nodes"]}

    @property
    def error(self) -> dict[str, Any] | None:
        """`node_id`, `exception_message`, `traceback` … of the node that failed, if one did."""
        return next(iter(self.of_type("execution_error")), None)

    @property
    def interrupted(self) -> bool:
        """Whether the run was cancelled."""
        return bool(self.of_type("execution_interrupted"))

    def images(self, node: str) -> list[dict[str, str]]:
        """The pictures a node saved or previewed, as references for `ComfyServer.image`."""
        return self.outputs[node]["images"]


class ComfyServer:
    """A ComfyUI on a free loopback port, from `start` to `stop`; usable in a `with` statement.

    Which ComfyUI, and its folders, come from the variables `dev.py` sets (`ComfyUI.environment`);
    `env` overrides them, `arguments` are added to ComfyUI's own.
    """

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300.0
    ) -> None:
        self.arguments = arguments
        self.env = {**os.environ, **(env or {})}
        self.timeout = timeout
        """Seconds the server may take to start."""
        self.base = Path(self.env["PURE_BASE_DIR"])
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = self.base / "server.log"

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:PORT`"""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.port = free_port()
        launcher = [sys.executable, str(ROOT / "dev" / "launch.py"), "comfy"]
        options = ["--listen", "127.0.0.1", "--port", str(self.port), *self.arguments]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*launcher, *options],
                cwd=self.base,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                code = self.process.returncode
                raise ServerError(f"ComfyUI ended while starting (exit {code}):\n{self.log()}")
            try:
                self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
            else:
                return
        raise ServerError(f"ComfyUI did not answer within {self.timeout:.0f} s:\n{self.log()}")

    def stop(self) -> None:
        """End the process that `start` started."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self, characters: int = 6000) -> str:
        """The end of what the server printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-characters:]

    def get(self, path: str, **query: str) -> Any:
        """JSON that the server answers to a GET."""
        return json.loads(self.read(path, **query))

    def read(self, path: str, **query: str) -> bytes:
        """What the server answers to a GET."""
        address = self.address + path + ("?" + urllib.parse.urlencode(query) if query else "")
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, content: Any = None) -> Any:
        """JSON that the server answers to a POST of JSON, None if it answers nothing."""
        body = json.dumps(content if content is not None else {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"POST {path}: {error.code} {error.read().decode()}") from error
        return json.loads(text) if text else None

    def node(self, name: str) -> dict[str, Any]:
        """A node's definition, as the editor gets it."""
        return self.get(f"/object_info/{name}")[name]

    def interrupt(self) -> None:
        """Cancel the prompt that runs."""
        self.post("/interrupt")

    def free(self) -> None:
        """Let the server unload its models and forget its cached results.

        It does so after a prompt or when it has waited a while for one; after the small one that
        follows here at the latest.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run(NOTHING)

    def run(
        self,
        prompt: Prompt,
        on_message: Callable[[Message], None] | None = None,
        timeout: float = 600.0,
    ) -> Run:
        """Queue a prompt and follow it to its end.

        `on_message` sees every message as it comes and may call `interrupt`. A prompt that the
        server refuses, as a whole or in a part, raises ServerError with the server's words; one
        that fails or is cancelled while it runs comes back with `error` or `interrupted`.
        """
        following = self._follow(prompt, on_message or (lambda message: None))
        with ThreadPoolExecutor(1) as pool:  # a browser's driver has a loop in the caller's thread
            return pool.submit(asyncio.run, asyncio.wait_for(following, timeout)).result()

    async def _follow(self, prompt: Prompt, on_message: Callable[[Message], None]) -> Run:
        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.address}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            queued = await asyncio.to_thread(
                self.post, "/prompt", {"prompt": prompt, "client_id": client}
            )
            if queued["node_errors"]:  # the server drops those outputs and runs the others
                raise ServerError(f"ComfyUI refused a part: {json.dumps(queued['node_errors'])}")
            run = Run(queued["prompt_id"])
            async for received in socket:
                if received.type != aiohttp.WSMsgType.TEXT:
                    continue  # previews are binary
                content = json.loads(received.data)
                message = Message(content["type"], content.get("data") or {})
                if message.data.get("prompt_id") != run.prompt_id:
                    continue
                run.messages.append(message)
                on_message(message)
                if message.type == "executing" and message.data.get("node") is None:
                    break
            else:
                raise ServerError(f"ComfyUI closed the connection:\n{self.log()}")
        history = self.get(f"/history/{run.prompt_id}")[run.prompt_id]
        run.outputs = history["outputs"]
        run.status = history["status"]["status_str"]
        return run

    def image(self, reference: Mapping[str, str]) -> bytes:
        """The file of a saved or previewed picture (PNG)."""
        return self.read("/view", **reference)

    def pictures(self, references: Iterable[Mapping[str, str]]) -> np.ndarray:
        """The pictures of a node (b, height, width, 3), uint8."""
        files = (self.image(reference) for reference in references)
        return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
