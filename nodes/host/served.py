"""Whether ComfyUI serves the plugin's web files, which its panels and help pages are made of."""

from __future__ import annotations

import logging
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2].name
"""The plugin's, under which ComfyUI serves its web files."""

SERVED = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
"""Names that are written in a URL as they are. Others ComfyUI announces in one spelling and the
server knows in another (blanks, letters with accents, other alphabets, brackets)."""


def warn_if_not_served(folder: str = FOLDER) -> None:
    """Say so in the log if the plugin's web files cannot be loaded under the folder's name."""
    if not SERVED.fullmatch(folder):
        logging.warning(
            "PURE: ComfyUI cannot serve the web files of a plugin folder called '%s', so PURE's "
            "panels and help pages are missing. Rename the folder in custom_nodes to "
            "comfyui-pure and start ComfyUI again.",
            folder,
        )
