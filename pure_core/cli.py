"""The command line: look into files and make erased ones, without ComfyUI and without a GPU.

python pure.py inspect dog.safetensors
python pure.py apply sd15.safetensors dog.safetensors -o sd15-no-dog.safetensors

`pure.py` lies in the plugin's folder and is called by its path, from anywhere and by every Python,
also the one in ComfyUI's portable build. In that folder, `python -m pure_core` does the same.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from . import __version__
from .activations import Activations
from .combine import MODES, combine
from .eraser import EDITS, Eraser
from .errors import PureError
from .export import (
    LORA_DTYPES,
    LORA_FORMS,
    Source,
    export_checkpoint,
    export_diffusers,
    export_lora,
    lora_tensors,
)
from .export.provenance import export_metadata, read_record
from .export.source import said_of_shared
from .files.activations import KIND as ACTIVATIONS
from .files.activations import load_activations
from .files.eraser import FORMAT, load_eraser, save_eraser
from .files.safetensors_file import SafetensorsFile
from .fitting import BY_HEAD, TOGETHER
from .progress import Progress

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit status; argparse ends with 2 when the command itself is not understood."""

OPTIONS = {
    "(any_source)": "(--any-source)",
    "max_rank:": "--max-rank:",
    "connect them to 'retain'": "give them with --retain",
    "Disconnect 'retain'": "Leave --retain away",
}
"""Words of messages that name inputs in the graph -> what they are here."""

EXPORTS = {"apply": export_checkpoint, "diffusers": export_diffusers}


MODULE = "python -m pure_core"


def parser(program: str = MODULE) -> argparse.ArgumentParser:
    """Commands and options. `program` is what a person types before them."""
    top = argparse.ArgumentParser(
        prog=program,
        description=(
            "Look into erasers and erased models, and make erased checkpoints and LoRAs. "
            "No file is ever overwritten."
        ),
        epilog=f"Each command has its own help: {program} apply --help",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=f"{help} {more}".strip())

    inspect = add("inspect", "Show what is in an eraser, an erased checkpoint or a LoRA.")
    inspect.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a .safetensors file; for a diffusers folder, the one in it",
    )
    inspect.add_argument("--json", action="store_true", help="print JSON, one object a file")

    apply = add(
        "apply",
        "Write a checkpoint with concepts erased.",
        "Only the cross-attention keys and values change; everything else in the file stays byte "
        "for byte.",
    )
    diffusers = add("diffusers", "Write the erased U-Net as a folder for the diffusers library.")
    lora = add(
        "lora",
        "Write the erasure as a LoRA.",
        "Loaded at strength 1 on SOURCE it gives what 'apply' gives.",
    )
    for command, what in (
        (apply, "checkpoint (.safetensors)"),
        (diffusers, "folder"),
        (lora, "LoRA (.safetensors)"),
    ):
        command.add_argument("source", metavar="SOURCE", help="the model's .safetensors file")
        command.add_argument(
            "erasers", nargs="+", metavar="ERASER", help="eraser files, applied in this order"
        )
        _add_output(command, f"the {what} to write")
        command.add_argument(
            "--strength",
            type=float,
            action="append",
            metavar="S",
            help="multiplies the strength in the eraser file: 1 applies it as saved (default), 0 "
            "changes nothing, below 0 amplifies; give it once for all erasers or once for each",
        )
        command.add_argument(
            "--edit", choices=EDITS, help="what to edit (default: what each eraser says)"
        )
        command.add_argument(
            "--any-source",
            action="store_true",
            help="SOURCE may be another model than the one the eraser was fitted on, of the same "
            "architecture (a fine-tune)",
        )
    lora.add_argument("--dtype", choices=LORA_DTYPES, default="float32", help="default: float32")
    lora.add_argument(
        "--form", choices=LORA_FORMS, default=LORA_FORMS[0], help=f"default: {LORA_FORMS[0]}"
    )

    merge = add("merge", "Write several erasers as one.")
    merge.add_argument("erasers", nargs="+", metavar="ERASER", help="two or more")
    _add_output(merge, "the eraser (.safetensors) to write")
    merge.add_argument(
        "--mode",
        choices=MODES,
        default="in sequence",
        help="in sequence: the product, in this order (default); joint: what fitting all concepts "
        "at once gives, in any order",
    )
    merge.add_argument(
        "--retain",
        metavar="FILE",
        help="activations (.safetensors, saved in ComfyUI) of what a joint eraser has to keep",
    )
    merge.add_argument(
        "--max-rank",
        type=int,
        default=0,
        metavar="R",
        help="at most R directions a layer, those in which the concepts change most (default: all)",
    )
    return top


def _add_output(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("-o", "--output", required=True, metavar="OUT", help=help)


def main(arguments: Sequence[str], program: str = MODULE) -> int:
    """Run one command; the exit status."""
    options = parser(program).parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # prompts in any language
    signal.signal(signal.SIGTERM, _interrupt)  # so that a half-written file is removed
    try:
        return COMMANDS[options.command](options)
    except PureError as error:
        print(f"error: {_printable(_readable(str(error)))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _readable(message: str) -> str:
    """Messages name parameters; on the command line they are options."""
    for parameter, option in OPTIONS.items():
        message = message.replace(parameter, option)
    return message


def _inspect(options: argparse.Namespace) -> int:
    described = [describe(path) for path in options.files]
    if options.json:
        for each in described:
            print(_printable(json.dumps(each, ensure_ascii=False), _escaped))
    else:
        print("\n\n".join(_as_text(each) for each in described))
    return OK


def _export(options: argparse.Namespace) -> int:
    started = time.monotonic()
    with _Bar() as progress:
        note = EXPORTS[options.command](
            options.source, options.output, _erasers(options), options.any_source, progress
        )
    _say_written(Path(options.output), started)
    if note:
        print(note)
    return OK


def _lora(options: argparse.Namespace) -> int:
    started = time.monotonic()
    erasers = _erasers(options)
    source = Source.open(options.source, erasers, options.any_source)
    file = source.file
    tensors = lora_tensors(source.model, erasers, source, LORA_DTYPES[options.dtype], options.form)
    made = export_metadata(erasers, file.path.name, file.fingerprint())
    export_lora(options.output, tensors, made)
    _say_written(Path(options.output), started)
    if note := said_of_shared(erasers, source.model):
        print(note)
    return OK


def _merge(options: argparse.Namespace) -> int:
    started = time.monotonic()
    erasers = [load_eraser(path) for path in options.erasers]
    retain = load_activations(options.retain) if options.retain else None
    with _Bar() as progress:
        merged = combine(erasers, options.mode, retain, options.max_rank, progress)
    save_eraser(merged, options.output)
    _say_written(Path(options.output), started)
    return OK


COMMANDS = {
    "inspect": _inspect,
    "apply": _export,
    "diffusers": _export,
    "lora": _lora,
    "merge": _merge,
}


def _erasers(options: argparse.Namespace) -> list[Eraser]:
    strengths = options.strength or [1.0]
    if len(strengths) not in (1, len(options.erasers)):
        raise PureError(
            f"--strength: expected it once, or {len(options.erasers)} times (for each eraser), "
            f"got it {len(strengths)} times."
        )
    if len(strengths) == 1:
        strengths = strengths * len(options.erasers)
    return [
        load_eraser(path).applied(strength, options.edit)
        for path, strength in zip(options.erasers, strengths, strict=True)
    ]


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file holds: an eraser, or a model or LoRA with the erasures it records.

    Raises:
        PureError: it cannot be read.
    """
    file = SafetensorsFile.open(path)
    common = {"file": str(path), "megabytes": round(file.path.stat().st_size / 1e6, 2)}
    if file.metadata.get("format") == FORMAT:
        eraser = load_eraser(path)
        return {**common, "holds": "eraser", **_describe_eraser(eraser)}
    if file.metadata.get("format") == ACTIVATIONS.format:
        captured = load_activations(path)
        return {**common, "holds": "activations", **_describe_activations(captured)}
    names = list(file.entries)
    is_lora = any(".lora_" in name for name in names)
    described = {**common, "holds": "LoRA" if is_lora else "model", "tensors": len(names)}
    if file.trailing:
        described["bytes_after_the_last_tensor"] = file.trailing
    return {**described, "erasers": [], **(read_record(file.metadata) or {})}


def _describe_eraser(eraser: Eraser) -> dict[str, Any]:
    made = eraser.provenance
    ranks, widths = eraser.ranks.values(), eraser.widths.values()
    return {
        "layers": len(eraser.layers),
        "space": eraser.space,
        "widths": sorted(set(widths)),
        "heads": BY_HEAD if eraser.heads else TOGETHER,
        "ranks": [min(ranks), max(ranks)],
        "fingerprint": eraser.fingerprint,
        "concepts": made.concepts,
        "method": made.method,
        "settings": made.settings,
        "trajectory": made.trajectory.record() if made.trajectory else {},
        "strength": eraser.strength,
        "edit": eraser.edited,
        "joinable": eraser.joinable,
        "forget": made.forget.record(),
        "retain": made.retain.record(),
        **({"replacement": made.replacement.record()} if made.replacement else {}),
        "model": made.model.without_sketch(),
        "created": made.created,
        "plugin_version": made.plugin_version,
    }


def _describe_activations(captured: Activations) -> dict[str, Any]:
    return {
        "layers": len(captured.rows),
        "widths": sorted(set(captured.widths.values())),
        "concepts": captured.anchors.concepts,
        "prompts": captured.prompts,
        "trajectory": captured.trajectory.record(),
        "model": captured.model.without_sketch(),
    }


ANCHORS = ("forget", "retain", "replacement", "prompts")
"""Facts that are prompts, or anchors with their prompts and concepts."""


def _as_text(described: dict[str, Any]) -> str:
    """One line a fact, prompts one a line, erasers indented; a file may hold anything."""
    facts = dict(described)
    erasers = facts.pop("erasers", None)
    lines = _lines(facts)
    if erasers is not None:
        lines.append("erasers:" + ("" if erasers else " none recorded"))
    for number, each in enumerate(erasers or (), start=1):
        lines += [f"  eraser {number}", *(f"    {line}" for line in _lines(each))]
    return "\n".join(lines)


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in facts.items():
        label = _printable(name.replace("_", " "))
        if name in ANCHORS and isinstance(value, (list, tuple)):
            lines.append(f"{label}: {len(value)} prompts{_of_concepts(value)}")
            lines += [f"  {_printable(_prompt(each))}" for each in value]
        else:
            joint = " to " if name == "ranks" else ", "
            lines.append(f"{label}: {_printable(_in_one_line(value, joint))}")
    return lines


def _in_one_line(value: object, joint: str) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return joint.join(map(str, value))
    return str(value)


def _prompt(anchor: object) -> object:
    """The prompt of an anchor's record."""
    return anchor.get("prompt", "") if isinstance(anchor, dict) else anchor


def _of_concepts(anchors: Sequence[object]) -> str:
    """The concepts that anchors' records name, for the end of a line."""
    concepts = (each.get("concept", "") for each in anchors if isinstance(each, dict))
    names = ", ".join(dict.fromkeys(str(each) for each in concepts if each))
    return f" of {_printable(names)}" if names else ""


def _shown(character: str) -> str:
    return repr(character)[1:-1]


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _printable(value: object, instead: Callable[[str], str] = _shown) -> str:
    """Text without what would steer the terminal."""
    return "".join(each if each.isprintable() else instead(each) for each in str(value))


def _say_written(path: Path, started: float) -> None:
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    print(f"wrote {path} ({size / 1e6:.1f} MB) in {time.monotonic() - started:.1f} s")


class _Bar:
    """A line that shows how far the work has come, on a terminal only."""

    def __enter__(self) -> Progress:
        self._shown = -1
        return self._update if sys.stderr.isatty() else lambda done, total: None

    def _update(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if percent != self._shown:
            self._shown = percent
            bar = "#" * (percent // 4)
            print(f"\r[{bar:25}] {percent:3} %", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._shown >= 0:
            print(file=sys.stderr)
