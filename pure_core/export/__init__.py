"""Taking an erasure out of ComfyUI: checkpoints, LoRAs and diffusers folders, made exactly."""

from .checkpoint import export_checkpoint
from .diffusers import export_diffusers
from .lora import LORA_DTYPES, LORA_FORMS, export_lora, lora_tensors
from .provenance import read_history
from .source import Source

__all__ = [
    "LORA_DTYPES",
    "LORA_FORMS",
    "Source",
    "export_checkpoint",
    "export_diffusers",
    "export_lora",
    "lora_tensors",
    "read_history",
]
