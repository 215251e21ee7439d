"""Every U-Net family that ComfyUI supports, in full size with random weights, through every node.

    python3 dev.py run benchmarks/families.py -- --family "SD 1.5" --dtype fp16

For each family it writes a checkpoint in the original layout (U-Net and whole text encoders, no
VAE), which the stock CheckpointLoaderSimple has to detect. From there a concept is captured, fitted
by both methods and erased; the erasure is saved in every form, loaded again and compared. Each row
runs in a process of its own, so that the memory it peaks at is its own. Rows go to
families.jsonl one by one; those that are there are not run again, with `--again` they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from testbed.comfy import inprocess

inprocess.enter()

import comfy.cli_args
import comfy.model_management
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes import (
    Capture,
    Concept,
    Fit,
    LoadEraser,
    Patch,
    SaveCheckpoint,
    SaveEraser,
    SaveLoRA,
)
from comfyui_pure.nodes.host.patch import AS_FITTED
from comfyui_pure.nodes.host.sites import Sites, architecture, patch_keys
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.trajectory import Trajectory
from torch import Tensor

import nodes
from benchmarks.common import RESULTS, markdown
from testbed.comfy.families import FAMILIES, V_PREDICTION_MARK, build, with_sampling
from testbed.comfy.stock import execute

VERSION = os.environ["PURE_COMFY_VERSION"]

DTYPES = {
    "fp16": "fp16_unet",
    "bf16": "bf16_unet",
    "fp32": "fp32_unet",
    "fp8": "fp8_e4m3fn_unet",
}
"""Type that the U-Net is kept in -> ComfyUI's command line flag for it."""

STORED = {torch.float16: "F16", torch.float32: "F32"}
PIXELS = 64
POOL = 2**24 - 3
"""Random numbers that all weights are cut from; an odd number, so that no two rows are alike."""

TEXT_SHAPES = {"CLIP-H": (1024, 24), "bigG": (1280, 32)}
"""OpenCLIP's text encoders: width and layers."""

TEXT_PARTS = {
    "CLIP-L": {"cond_stage_model.transformer.": "CLIP-L"},
    "CLIP-H": {"cond_stage_model.model.": "CLIP-H"},
    "bigG": {"conditioner.embedders.0.model.": "bigG"},
    "CLIP-L and bigG": {
        "conditioner.embedders.0.transformer.": "CLIP-L",
        "conditioner.embedders.1.model.": "bigG",
    },
}
"""Where checkpoints keep their text encoders."""

STAGES = (
    "write",
    "load",
    "concept",
    "capture",
    "fit pure",
    "fit ridge",
    "sample",
    "patch pure",
    "patch ridge",
    "save checkpoint",
    "save LoRA",
    "save eraser",
    "LoRA",
    "eraser",
    "checkpoint",
)
"""In their order; the last three load a file again and sample."""

FACTS = (
    "family",
    "ComfyUI",
    "dtype",
    "file",
    "detected",
    "prediction",
    "computed in",
    "layers",
    "widths",
    "rank pure",
    "rank ridge",
    "checkpoint MB",
    "LoRA MB",
    "eraser MB",
    "peak RSS MB",
    "change pure",
    "change ridge",
    "difference LoRA",
    "difference eraser",
    "difference checkpoint",
    "rounding",
    "result",
)


LEGEND = f"""Full-size U-Nets and text encoders with random weights, from a checkpoint file on disk
through the nodes of a real ComfyUI on a CPU, {PIXELS} x {PIXELS} pixels. *dtype*: what the U-Net is
kept in, *computed in*: what ComfyUI casts to for every step, *file*: what the checkpoint is stored
in. *Change*: largest difference of the latents with and without the eraser. *Difference*: largest
difference between the patched model and what was loaded again, the LoRA (float32) and the eraser
on the source, the exported checkpoint alone. *Rounding*: |stored(E W) - E W| / |E W - W|, mean over
the edited weights. *Peak RSS* counts the mapped pages of the file as well. The seconds were taken
while other programs ran and compare nothing; those of every stage are in families.jsonl. The
failure of Lotus D in 0.3.75 is ComfyUI's own: that version reads this U-Net from diffusers files
alone.

"""


class Failed(Exception):
    """A stage that did not do what it should."""


def open_clip_shapes(width: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of an OpenCLIP text encoder."""
    yield "token_embedding.weight", (49408, width)
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield from norm("ln_final", width)
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        yield from norm(f"{block}.ln_1", width)
        yield from norm(f"{block}.ln_2", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from linear(f"{block}.attn.out_proj", width, width)
        yield from linear(f"{block}.mlp.c_fc", 4 * width, width)
        yield from linear(f"{block}.mlp.c_proj", width, 4 * width)


def clip_l_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of CLIP-L's text encoder as the transformers library names them."""
    width = 768
    yield "text_model.embeddings.token_embedding.weight", (49408, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    yield from norm("text_model.final_layer_norm", width)
    for layer in range(12):
        block = f"text_model.encoder.layers.{layer}"
        yield from norm(f"{block}.layer_norm1", width)
        yield from norm(f"{block}.layer_norm2", width)
        for projection in ("q", "k", "v", "out"):
            yield from linear(f"{block}.self_attn.{projection}_proj", width, width)
        yield from linear(f"{block}.mlp.fc1", 4 * width, width)
        yield from linear(f"{block}.mlp.fc2", width, 4 * width)


def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a family's checkpoint, without a VAE."""
    found = {
        f"model.diffusion_model.{key}": tuple(each.shape)
        for key, each in build(name, torch.device("meta")).state_dict().items()
    }
    for prefix, part in TEXT_PARTS[FAMILIES[name].text].items():
        made = clip_l_shapes() if part == "CLIP-L" else open_clip_shapes(*TEXT_SHAPES[part])
        found.update({prefix + key: shape for key, shape in made})
    return found | {key: tuple(each.shape) for key, each in FAMILIES[name].marks.items()}


class Weights:
    """Random weights of a size that keeps activations near 1, cut from one pool of numbers."""

    def __init__(self, name: str) -> None:
        self._pool = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32)
        self._start = 0
        self._marks = FAMILIES[name].marks
        self._v = FAMILIES[name].prediction == "V_PREDICTION"

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of that name, flat."""
        if name in self._marks:
            return self._marks[name].numpy()
        if len(shape) > 1:
            return self._cut(math.prod(shape)) * math.prod(shape[1:]) ** -0.5
        if name.endswith("bias"):
            spread = 0.2 if self._v and name.endswith(V_PREDICTION_MARK) else 0.02
            return self._cut(shape[0]) * spread
        return np.ones(shape, np.float32)

    def _cut(self, count: int) -> np.ndarray:
        """The next numbers of the pool, which begins again at its end."""
        parts = []
        while count:
            parts.append(self._pool[self._start : self._start + count])
            count -= len(parts[-1])
            self._start = (self._start + len(parts[-1])) % POOL
        return np.concatenate(parts)


def write_checkpoint(path: Path, name: str, dtype: torch.dtype) -> None:
    """A safetensors file, written tensor by tensor so that memory stays small."""
    every, weights = shapes(name), Weights(name)
    size = dtype.itemsize
    header, end = {}, 0
    for key, shape in every.items():
        start, end = end, end + math.prod(shape) * size
        header[key] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for key, shape in every.items():
            weights(key, shape).astype(np.float16 if size == 2 else np.float32).tofile(file)


class Row:
    """One family in one type: what came out of every stage."""

    def __init__(self, name: str, dtype: str, stored: torch.dtype, folder: Path) -> None:
        self.name, self.dtype, self.stored, self.folder = name, dtype, stored, folder
        self.kind = FAMILIES[name]
        self.facts: dict[str, Any] = {"family": name, "ComfyUI": VERSION, "dtype": dtype}
        self.facts["file"] = NAMES[stored]
        self.seconds: dict[str, str] = {}

    def stage(self, name: str, action: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Run a stage and note its seconds. After the first that fails nothing more is run."""
        started = time.perf_counter()
        try:
            result = action(*given, **named)
        except Exception as error:
            self.seconds[name] = "FAIL"
            raise Failed(f"{name}: {type(error).__name__}: {error}") from error
        self.seconds[name] = f"{time.perf_counter() - started:.1f}"
        return result

    def run(self) -> None:
        """All stages in order."""
        setattr(comfy.cli_args.args, DTYPES[self.dtype], True)
        self.stage("write", write_checkpoint, self.file, self.name, self.stored)
        self.facts["checkpoint MB"] = megabytes(self.file)
        model, clip = self.stage("load", self.load, self.file.name)
        self.describe(model)
        concept = {"concept": "a fox", "kind": "custom", "templates": "{}\na photo of {}"}
        forget, *_ = self.stage("concept", execute, Concept, neighbours="", **concept)
        captured = self.stage("capture", self.capture, model, clip, forget)
        pure = self.stage("fit pure", self.fit, "pure", *captured)
        ridge = self.stage("fit ridge", self.fit, "ridge", *captured)
        text = self.texts(clip)
        del clip, captured
        plain = self.stage("sample", self.sample, model, text)
        patched = self.stage("patch pure", self.patch_and_sample, model, pure, text)
        self.facts["change pure"] = difference(patched, plain)
        other = self.stage("patch ridge", self.patch_and_sample, model, ridge, text)
        self.facts["change ridge"] = difference(other, plain)
        self.facts["rounding"] = f"{rounding(model, pure):.1e}"
        erased = Path(self.stage("save checkpoint", self.save_checkpoint, pure))
        lora = Path(self.stage("save LoRA", self.save_lora, model, pure))
        saved = Path(self.stage("save eraser", self.save_eraser, pure))
        self.facts["LoRA MB"], self.facts["eraser MB"] = megabytes(lora), megabytes(saved)
        again = self.stage("LoRA", self.with_lora, model, lora, text)
        self.facts["difference LoRA"] = difference(again, patched)
        again = self.stage("eraser", self.with_eraser, model, saved, text)
        self.facts["difference eraser"] = difference(again, patched)
        del model
        self.file.unlink()
        free()
        again = self.stage("checkpoint", self.from_checkpoint, erased, text)
        self.facts["difference checkpoint"] = difference(again, patched)
        self.require_change()

    @property
    def file(self) -> Path:
        return self.folder / "checkpoints" / "source.safetensors"

    def load(self, name: str) -> tuple[ModelPatcher, Any]:
        """By the stock nodes."""
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(name)
        return with_sampling(self.name, model), clip

    def describe(self, model: ModelPatcher) -> None:
        """What was detected; raises Failed if it is not what the file was written as."""
        sites, inner = Sites.of(model), model.model
        self.facts |= {
            "detected": architecture(model),
            "prediction": self.kind.node.get("sampling", inner.model_type.name),
            "computed in": str(inner.manual_cast_dtype or inner.get_dtype()).removeprefix("torch."),
            "layers": len(sites.sites),
            "widths": " ".join(map(str, sorted(set(sites.widths().values())))),
        }
        found = (architecture(model), inner.model_type.name, len(sites.sites))
        expected = (self.kind.detected, self.kind.prediction, self.kind.layers)
        if found != expected:
            raise Failed(f"load: expected {expected}, ComfyUI detected {found}")

    def capture(self, model: ModelPatcher, clip: Any, forget: AnchorSet) -> tuple[Any, Any]:
        retain = "a cat\na horse\na photo of a mill"
        trajectory = Trajectory(
            steps=4, run_steps=2, latents=1, cfg=self.kind.cfg, width=PIXELS, height=PIXELS
        )
        settings = {"model": model, "clip": clip, **trajectory._asdict()}
        (first,) = execute(Capture, prompts=forget, **settings)
        (second,) = execute(Capture, prompts=retain, **settings)
        return first, second

    def fit(self, method: str, forget: Any, retain: Any) -> Eraser:
        eraser, _, _ = execute(Fit, forget=forget, retain=retain, method=method)
        ranks = set(eraser.ranks.values())
        self.facts[f"rank {method}"] = f"{min(ranks)}-{max(ranks)}"
        return eraser

    def texts(self, clip: Any) -> tuple[Any, Any]:
        """What CLIPTextEncode makes of a prompt of the concept, and of none."""
        encode = nodes.CLIPTextEncode().encode
        return encode(clip, "a fox")[0], encode(clip, "")[0]

    def sample(self, model: ModelPatcher, text: tuple[Any, Any]) -> Tensor:
        """Latents of the stock KSampler."""
        (empty,) = nodes.EmptyLatentImage().generate(PIXELS, PIXELS)
        (latent,) = nodes.KSampler().sample(
            model, 7, 2, self.kind.cfg, "euler", "normal", *text, empty
        )
        samples = latent["samples"]
        if not bool(torch.isfinite(samples).all()):
            raise Failed("the latents are not finite")
        return samples

    def patch_and_sample(self, model: ModelPatcher, eraser: Eraser, text: Any) -> Tensor:
        patched, *_ = execute(Patch, model=model, eraser=eraser, strength=1.0, edit=AS_FITTED)
        return self.sample(patched, text)

    def save_checkpoint(self, eraser: Eraser) -> str:
        (path,) = execute(
            SaveCheckpoint,
            ckpt_name=[self.file.name],
            eraser=[eraser],
            strength=[1.0],
            edit=[AS_FITTED],
            filename_prefix=["checkpoints/erased"],
            # rounded to eight bits they are not the file's weights any more, and refused
            any_source=[self.dtype == "fp8"],
        )
        return path

    def save_lora(self, model: ModelPatcher, eraser: Eraser) -> str:
        (path,) = execute(
            SaveLoRA,
            model=[model],
            eraser=[eraser],
            strength=[1.0],
            edit=[AS_FITTED],
            dtype=["float32"],
            filename_prefix=["loras/erased"],
        )
        return path

    def save_eraser(self, eraser: Eraser) -> str:
        (path,) = execute(SaveEraser, eraser=eraser, filename_prefix="fox")
        return path

    def from_checkpoint(self, path: Path, text: Any) -> Tensor:
        model, _ = self.load(path.name)
        return self.sample(model, text)

    def with_lora(self, model: ModelPatcher, path: Path, text: Any) -> Tensor:
        (changed,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, path.name, 1.0)
        return self.sample(changed, text)

    def with_eraser(self, model: ModelPatcher, path: Path, text: Any) -> Tensor:
        eraser, _ = execute(LoadEraser, eraser_name=path.name)
        return self.patch_and_sample(model, eraser, text)

    def require_change(self) -> None:
        """Raise Failed if erasing did nothing: then the comparisons say nothing either."""
        if not all(float(self.facts[f"change {method}"]) > 0 for method in ("pure", "ridge")):
            raise Failed("erasing changed nothing")


NAMES = {torch.float16: "fp16", torch.float32: "fp32"}


def difference(one: Tensor, other: Tensor) -> str:
    """Largest difference of two latents."""
    return f"{float((one - other).abs().max()):.1e}"


def megabytes(path: Path) -> str:
    size = path.stat().st_size / 1e6
    return f"{size:.0f}" if size > 10 else f"{size:.2f}"


@torch.no_grad()
def rounding(model: ModelPatcher, eraser: Eraser) -> float:
    """|stored(E W) - E W| / |E W - W|, mean over all edited weights, as ComfyUI stores them.

    W is the weight in the model's type, and stored is what core leaves in the module.
    """
    sites = Sites.of(model)
    before = {}
    for site in sites.sites:
        for role in eraser.roles:
            (key, *_) = patch_keys(site.rows(role))
            ((stored, _), *_) = model.get_key_patches(key)[key]
            before[site.name, role] = stored.detach().clone()
    patched, *_ = execute(Patch, model=model, eraser=eraser, strength=1.0, edit=AS_FITTED)
    comfy.model_management.load_models_gpu([patched])
    ratios = []
    for (name, role), stored in before.items():
        weight = stored.double()
        exact = eraser.layers[name].to(torch.float64).edit_weight(weight)
        actual = sites.net.get_submodule(sites[name].rows(role).module).weight.double()
        ratios.append(float((actual - exact).norm() / (exact - weight).norm()))
    return sum(ratios) / len(ratios)


def free() -> None:
    """Let go of what ComfyUI keeps."""
    comfy.model_management.unload_all_models()
    gc.collect()


def place(folder: Path) -> None:
    """Make ComfyUI read and write its models in `folder`."""
    output = folder / "output"
    folder_paths.set_output_directory(str(output))
    for kind in ("checkpoints", "loras"):
        (folder / kind).mkdir()
        (output / kind).mkdir(parents=True)
        folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)
        folder_paths.add_model_folder_path(kind, str(output / kind))
    folder_paths.add_model_folder_path("erasers", str(folder / "erasers"), is_default=True)


def run_one(name: str, dtype: str, stored: str, target: Path) -> None:
    """One row, in this process; its cells go to `target`."""
    stored_as = {each: kind for kind, each in NAMES.items()}[stored]
    with tempfile.TemporaryDirectory() as folder:
        place(Path(folder))
        row = Row(name, dtype, stored_as, Path(folder))
        try:
            with torch.inference_mode():  # as ComfyUI runs its nodes
                row.run()
            row.facts["result"] = "ok"
        except Exception as error:  # whatever it is, it is a result
            row.facts["result"] = f"FAIL {error if isinstance(error, Failed) else repr(error)}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row.facts["peak RSS MB"] = f"{peak / 1e6:.0f}"
    target.write_text(json.dumps(row.facts | {f"s {k}": v for k, v in row.seconds.items()}))


class Wanted(NamedTuple):
    family: str
    ComfyUI: str
    dtype: str
    file: str


"""A row that is to be there."""


def in_own_process(wanted: Wanted) -> dict[str, str]:
    """A row's cells, from a copy of this process. One that dies is a failed row."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(
            target=run_one, args=(wanted.family, wanted.dtype, wanted.file, target)
        )
        process.start()
        process.join()
        if target.exists():
            return json.loads(target.read_text())
    return {**wanted._asdict(), "result": f"FAIL the process ended with {process.exitcode}"}


def readable(ledger: Ledger) -> str:
    """The table without the seconds of each stage, and what its columns say.

    It is sorted, so that the order in which rows were run does not show.
    """
    families, types = list(FAMILIES), list(DTYPES)
    heads = [*FACTS[:-1], "seconds", "result"]
    rows = []
    for name, version, dtype, file in sorted(
        ledger, key=lambda key: (key[1], types.index(key[2]), families.index(key[0]))
    ):
        row = {**Wanted(name, version, dtype, file)._asdict(), **ledger[name, version, dtype, file]}
        times = [row.get(f"s {stage}", "") for stage in STAGES]
        total = sum(float(each) for each in times if each not in ("", "FAIL"))
        rows.append([*(row.get(fact, "") for fact in FACTS[:-1]), f"{total:.0f}", row["result"]])
    return LEGEND + markdown(heads, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--stored", choices=NAMES.values(), default="fp16", help="in the file")
    parser.add_argument("--again", action="store_true", help="run rows that are there as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "families.jsonl", Wanted._fields)
    for dtype in args.dtype or ["fp16"]:
        for name in args.family or FAMILIES:
            wanted = Wanted(name, VERSION, dtype, args.stored)
            if args.again or wanted not in ledger:
                row = in_own_process(wanted)
                ledger.add(wanted, {k: v for k, v in row.items() if k not in Wanted._fields})
                print(*wanted, row["result"], flush=True)
            (args.out / "families.md").write_text(readable(ledger), encoding="utf-8")


if __name__ == "__main__":
    main()
