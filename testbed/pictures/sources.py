"""The icon packages: their pins, fetching them from the package registry, reading their pictures.

    python -m testbed.pictures.sources FOLDER

Only training needs them; no picture of theirs is committed.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple


class Package(NamedTuple):
    """A package of icons."""

    version: str
    sha512: str
    """The registry's integrity, base64."""

    licence: str


PACKAGES: dict[str, Package] = {
    "twemoji": Package(
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
    ),
    "noto": Package(
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
    ),
    "noto-v1": Package(
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
    ),
    "fluent-emoji": Package(
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT",
    ),
    "fluent-emoji-flat": Package(
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
    ),
    "emojione": Package(
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
    ),
}
"""Sets of `@iconify-json`. The last is no hand of the world: the judge learns from it that a
picture need not be by any of the five."""


class SourceError(Exception):
    """A package is not what was pinned."""


def fetch(folder: Path) -> None:
    """Download what is missing with npm, check it, and keep each set as `<name>.json`.

    Raises:
        SourceError: a download has another checksum than the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        target = folder / f"{name}.json"
        if target.exists():
            continue
        archive = folder / f"iconify-json-{name}-{package.version}.tgz"
        if not archive.exists():
            wanted = f"@iconify-json/{name}@{package.version}"
            subprocess.run(["npm", "pack", wanted], cwd=folder, check=True, capture_output=True)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != package.sha512:
            raise SourceError(f"{archive.name}: expected sha512 {package.sha512}, got {found}")
        with tarfile.open(archive) as packed:
            icons = packed.extractfile("package/icons.json")
            assert icons is not None
            partial = target.with_suffix(".partial")
            partial.write_bytes(icons.read())
        partial.replace(target)


class IconSet:
    """The icons of one package, aliases included."""

    def __init__(self, folder: Path, name: str) -> None:
        self._data: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())

    def names(self) -> set[str]:
        """Every name under which there is an icon."""
        return {*self._data["icons"], *self._data.get("aliases", {})}

    def svg(self, name: str) -> str:
        """The icon as an SVG document.

        Raises:
            KeyError: there is no such icon.
        """
        icon = self._data["icons"].get(name)
        if icon is None:
            alias = self._data["aliases"][name]
            if alias.keys() & {"hFlip", "vFlip", "rotate"}:
                raise KeyError(f"{name} is a turned alias")
            return self.svg(alias["parent"])
        size = [icon.get(k, self._data.get(k, 16)) for k in ("width", "height")]
        corner = [icon.get(k, 0) for k in ("left", "top")]
        box = " ".join(str(value) for value in (*corner, *size))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{icon["body"]}</svg>'
        )


@functools.cache
def icon_set(folder: Path, name: str) -> IconSet:
    """A fetched set."""
    return IconSet(folder, name)


def draw_svg(svg: str, pixels: int) -> Any:
    """A square RGBA picture (PIL) of an SVG document."""
    # Only training draws, so that tests and the demo need neither package.
    import resvg_py
    from PIL import Image

    data = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m testbed.pictures.sources FOLDER")
    fetch(Path(sys.argv[1]))
