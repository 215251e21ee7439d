"""A training run that is saved and taken up again, and what every training uses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAVE_SECONDS = 180
S = TypeVar("S")
"""What a picture shows."""


class Run:
    """A training run that can be stopped and taken up again."""

    def __init__(self, name: str, work: Path, module: nn.Module, steps: int, rate: float) -> None:
        self.name, self.module, self.steps, self.rate = name, module, steps, rate
        self.state = work / f"{name}.safetensors"
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        decay = [p for p in module.parameters() if p.ndim > 1]
        rest = [p for p in module.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.98),
        )
        self.step = 0
        if self.state.exists():
            self._resume()

    def _resume(self) -> None:
        saved = load_file(self.state)
        self.step = int(saved["step"])
        self.module.load_state_dict(part(saved, "module."))
        self.average = {
            key: value.to(self.average[key].device)
            for key, value in part(saved, "average.").items()
        }
        for i, parameter in enumerate(self._parameters()):
            if f"first.{i}" not in saved:  # begun from weights alone
                continue
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": saved[f"first.{i}"].to(parameter.device),
                "exp_avg_sq": saved[f"second.{i}"].to(parameter.device),
            }
        print(f"{self.name}: going on from step {self.step}", flush=True)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self) -> None:
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, parameter in enumerate(self._parameters()):
            if state := self.optimizer.state.get(parameter):
                tensors[f"first.{i}"] = state["exp_avg"]
                tensors[f"second.{i}"] = state["exp_avg_sq"]
        tensors["step"] = torch.tensor(self.step)
        partial = self.state.with_suffix(".partial")
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, partial)
        partial.replace(self.state)

    def train(self, loss_of: Callable[[np.random.Generator], Tensor]) -> None:
        """Take the remaining steps; `loss_of` draws a batch with a generator of this step."""
        started = saved = time.monotonic()
        first, mean = self.step, 0.0
        while self.step < self.steps:
            warm = min(1.0, (self.step + 1) / 200)
            rate = (
                self.rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * self.step / self.steps)))
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(self.step)
            loss = loss_of(np.random.default_rng(self.step))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            mean = 0.98 * mean + 0.02 * loss.item() if mean else loss.item()
            if self.step % 50 == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                left = pace * (self.steps - self.step) / 60
                print(
                    f"{self.name} {self.step}/{self.steps} loss {mean:.4f} "
                    f"{pace:.2f} s/step, {left:.0f} min left",
                    flush=True,
                )
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(0.998, self.step / (self.step + 10))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - keep)
            else:
                self.average[key].copy_(value)

    def averaged(self) -> nn.Module:
        """The module with the running average of its weights, for use after training."""
        self.module.load_state_dict(self.average)
        return self.module.eval().requires_grad_(False)


class Data(Generic[S]):
    """Pictures that were drawn once, and what each shows; the last ones are never trained on."""

    def __init__(self, work: Path, scene: Callable[..., S]) -> None:
        self.pictures = np.load(work / "pictures.npy", mmap_mode="r")
        self.scenes = [scene(**s) for s in json.loads((work / "scenes.json").read_text())]

    def batch(self, index: np.ndarray, device: torch.device) -> Tensor:
        """Pictures (b, 3, 64, 64) in [0, 1]."""
        pictures = torch.from_numpy(self.pictures[index]).to(device)
        return pictures.permute(0, 3, 1, 2).float().div_(255)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16, but not on CPUs that would take many times longer for it."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
