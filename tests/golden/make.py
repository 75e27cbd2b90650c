"""Write the golden archives of the format's present version; those that are there are left alone. Run by hand."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "vectors"))
from making.build import write_safetensors
from making.numbers import Tensor
from spec.second_reader import Archive
from trust.small_zoos import write

from spec.vectors import read_plain
from tallstore.format.version import VERSION

HERE = Path(__file__).resolve().parent
KINDS = ("defaults", "high", "three bits", "referenced", "fit q4", "fit q8", "fit bf16", "emr", "lossless")


def main() -> None:
    """All kinds, and the list of hashes."""
    out = HERE / VERSION
    if out.exists():
        raise SystemExit(f"{out} is there: what was released is not written again")
    for kind in KINDS:
        folder = out / re.sub(r"\W+", "-", kind)
        with tempfile.TemporaryDirectory() as scratch:
            archive, base = write(kind, Path(scratch), suffix=".tall")
            folder.mkdir(parents=True)
            shutil.copyfile(archive, folder / "zoo.tall")
            if base is not None:
                shutil.copyfile(base, folder / "base.safetensors")
        given = read_plain(folder / "base.safetensors") if base is not None else None
        reader = Archive(folder / "zoo.tall", given)
        for task, facts in reader.manifest["tasks"].items():
            forms = {"decoded": reader.decode(task)}
            if "exact" in facts["parts"]:
                forms["exact"] = reader.decode(task, exact=True)
            for form, tensors in forms.items():
                made = {name: Tensor(dtype, shape, data) for name, (dtype, shape, data) in tensors.items()}
                write_safetensors(made, folder / form / f"{task}.safetensors")
    paths = sorted(p for p in HERE.rglob("*") if p.is_file() and p.parent != HERE)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(HERE).as_posix()}\n" for p in paths]
    (HERE / "SHA256SUMS").write_text("".join(line for line in lines if "__pycache__" not in line), encoding="utf-8")


if __name__ == "__main__":
    main()
