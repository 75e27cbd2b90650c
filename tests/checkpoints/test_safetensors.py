"""Checkpoints in safetensors files: headers that several files have alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.errors import CheckpointError


def test_files_of_one_header_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        save_file({"a": torch.full((3,), number), "b": torch.full((2, 2), float(number))}, path)
    whole = [SafetensorsCheckpoint([path], path.name) for path in paths]
    assert whole[0].tensors == whole[1].tensors
    assert [each.read("a", 0, 3).tolist() for each in whole] == [[0] * 3, [1] * 3]
    with paths[1].open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"1\.safetensors: .*not a whole safetensors file"):
        SafetensorsCheckpoint([paths[1]], "cut off")
    for each in whole:
        each.close()
