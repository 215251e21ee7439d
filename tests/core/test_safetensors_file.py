"""Files are rewritten byte for byte, except for what was to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pure_core.errors import ModelFileError
from pure_core.files.safetensors_file import Piece, SafetensorsFile


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "half": torch.randn(7, 5).half(),
        "brain": torch.randn(3, 4).bfloat16(),
        "full": torch.randn(6),
        "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "count": torch.tensor([1, 2, 3]),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor(True),
    }


@pytest.fixture
def file(tmp_path: Path, tensors) -> SafetensorsFile:
    path = tmp_path / "source.safetensors"
    save_file(tensors, path, metadata={"note": "Grüße"})
    return SafetensorsFile.open(path)


def copied(file: SafetensorsFile, target: Path, **edits) -> SafetensorsFile:
    pieces = [Piece(name, entry, edits.get(name)) for name, entry in file.entries.items()]
    file.write(target, pieces, file.metadata)
    return SafetensorsFile.open(target)


def test_a_copy_is_the_same_file_to_everyone(file, tensors, tmp_path):
    copy = copied(file, tmp_path / "copy.safetensors")
    assert list(copy.entries.items()) == list(file.entries.items())
    assert copy.metadata == file.metadata == {"note": "Grüße"}
    assert copy.path.read_bytes()[copy.data_start :] == file.path.read_bytes()[file.data_start :]
    for name, tensor in load_file(copy.path).items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.float(), tensors[name].float())


def test_an_edit_changes_its_tensor_and_nothing_else(file, tensors, tmp_path):
    copy = copied(file, tmp_path / "copy.safetensors", half=lambda weight: weight.float() * 3)
    entry, before, after = file.entries["half"], file.path.read_bytes(), copy.path.read_bytes()
    start, end = file.data_start + entry.start, file.data_start + entry.end
    assert after[copy.data_start : copy.data_start + entry.start] == before[file.data_start : start]
    assert after[copy.data_start + entry.end :] == before[end:]
    assert torch.equal(load_file(copy.path)["half"], (tensors["half"].float() * 3).half())


def test_tensors_may_be_left_out_and_renamed(file, tensors, tmp_path):
    target = tmp_path / "part.safetensors"
    file.write(target, [Piece("new name", file.entries["full"])], {})
    with safe_open(target, framework="pt") as part:
        assert list(part.keys()) == ["new name"] and part.metadata() is None
        assert torch.equal(part.get_tensor("new name"), tensors["full"])


def test_progress_ends_at_the_total_and_may_stop_the_writing(file, tmp_path):
    seen = []
    pieces = [Piece(name, entry) for name, entry in file.entries.items()]
    file.write(tmp_path / "a.safetensors", pieces, {}, lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        file.write(tmp_path / "b.safetensors", pieces, {}, stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "source.safetensors",
    ]


def test_what_cannot_be_edited_exactly_is_refused(file, tmp_path):
    with pytest.raises(ModelFileError, match="F8_E4M3, which cannot be edited exactly"):
        copied(file, tmp_path / "copy.safetensors", eight=lambda weight: weight)
    with pytest.raises(ModelFileError, match="'half' would hold NaN or infinity in F16"):
        copied(file, tmp_path / "copy.safetensors", half=lambda weight: weight.float() * 1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_the_fingerprint_follows_the_contents(file, tmp_path):
    same = copied(file, tmp_path / "same.safetensors")
    other = copied(file, tmp_path / "other.safetensors", full=lambda weight: weight + 1)
    assert same.fingerprint() == file.fingerprint() != other.fingerprint()


def damaged(content: bytes) -> dict[str, bytes]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["full"]["data_offsets"] = header["half"]["data_offsets"]
    overlapping = json.dumps(header).encode()
    return {
        "empty": b"",
        "seven bytes": content[:7],
        "cut in the header": content[:100],
        "cut in the data": content[:-1],
        "a pickle": b"PK\x03\x04" + bytes(200),
        "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>" * 3,
        "overlap": len(overlapping).to_bytes(8, "little") + overlapping + content[8 + length :],
        "a list": (2).to_bytes(8, "little") + b"[]",
        "odd entry": (11).to_bytes(8, "little") + b'{"a":"b12"}',
        "huge header": (2**62).to_bytes(8, "little") + content[8:],
    }


def test_damaged_and_foreign_files_are_named_as_such(file, tmp_path):
    path = tmp_path / "damaged.safetensors"
    for kind, content in damaged(file.path.read_bytes()).items():
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"damaged\.safetensors' cannot be read as one"):
            SafetensorsFile.open(path)
            pytest.fail(kind)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="found none"):
        SafetensorsFile.open(tmp_path / "none.safetensors")
