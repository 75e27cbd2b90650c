"""Builds `valid/`, `invalid/` and `SHA256SUMS` afresh: `PYTHONPATH=. python spec/vectors/generate.py`.

Run by hand, and only where the format or the list of vectors changes: what is committed is what other readers were
tested with. The bytes of zstd frames depend on the zstd that made them; every frame means the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from making import (
    build,
    invalid,
    invalid_codes,
    invalid_columns,
    invalid_containers,
    invalid_dare,
    invalid_dare_f32,
    invalid_dither,
    invalid_drift,
    invalid_lossless,
    invalid_low_rank,
    invalid_manifests,
    invalid_parts,
    invalid_relatives,
    valid,
    valid_archives,
    valid_codes,
    valid_columns,
    valid_dare,
    valid_dare_f32,
    valid_dither,
    valid_drift,
    valid_lossless,
    valid_low_rank,
    valid_newer,
    valid_relatives,
)

HERE = Path(__file__).resolve().parent
REGISTERED_BY = (
    valid_archives,
    valid_codes,
    valid_lossless,
    valid_newer,
    valid_relatives,
    valid_drift,
    valid_dare,
    valid_dither,
    valid_low_rank,
    valid_columns,
    valid_dare_f32,
)
"""The modules whose import registers the valid vectors."""


def write_json(path: Path, value: object) -> None:
    """One small file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_valid(root: Path) -> None:
    """Archives, what they decode to, and what they are about."""
    abouts = {}
    for name, make in sorted(valid.CASES.items()):
        case = make()
        files = case.archive.build()
        if case.file:
            build.write_tall(files, root / name / "archive.tall", wide=case.wide)
        else:
            build.write_folder(files | case.unlisted, root / name / "archive")
        for folder, tasks in (("decoded", case.decoded), ("exact", case.exact)):
            for task, tensors in tasks.items():
                build.write_safetensors(tensors, root / name / folder / f"{task}.safetensors")
        if case.given is not None:
            build.write_safetensors(case.given, root / name / "base.safetensors")
        abouts[name] = case.about
    write_json(root.parent / "valid.json", abouts)


def write_invalid(root: Path) -> None:
    """Archives, and what each must raise."""
    for name, case in invalid.CASES.items():
        if case.file is not None:
            (root / name).mkdir(parents=True)
            (root / name / "archive.tall").write_bytes(case.file)
        else:
            build.write_folder(case.files or {}, root / name / "archive")
        if case.given:
            build.write_safetensors(case.given, root / name / "base.safetensors")
        facts: dict[str, object] = {"about": case.about, "error": case.error, "at": case.at, "mentions": case.mentions}
        for kind, spoiled in (("tasks", case.tasks), ("tensors", case.tensors)):
            if spoiled:
                facts[kind] = {
                    key: dict(zip(("about", "error", "mentions"), three, strict=True)) for key, three in spoiled.items()
                }
        write_json(root / name / "expected.json", facts)


def write_sums(root: Path) -> None:
    """The list of all files, as sha256sum writes it."""
    paths = sorted(p for part in ("valid", "invalid") for p in (root / part).rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}\n" for p in paths]
    (root / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    for part in ("valid", "invalid"):
        shutil.rmtree(HERE / part, ignore_errors=True)
    for module in (
        invalid_manifests,
        invalid_containers,
        invalid_parts,
        invalid_codes,
        invalid_lossless,
        invalid_relatives,
        invalid_drift,
        invalid_dare,
        invalid_dither,
        invalid_low_rank,
        invalid_columns,
        invalid_dare_f32,
    ):
        module.make()
    write_valid(HERE / "valid")
    write_invalid(HERE / "invalid")
    write_sums(HERE)
