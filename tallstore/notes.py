"""What is said of how a task is stored: by a packer when it is done, and later by who reads the archive."""

from __future__ import annotations

from tallstore.humanize import size

__all__ = ["adapter_note", "cheaper_note", "lossless_note"]


def adapter_note(name: str, kind: str) -> str:
    """Of a task that is an adapter of that type."""
    how = "extract --merged (export(…, merged=True)) makes the model of it and the base"
    return f"{name}: an adapter ({kind}), kept bit for bit; {how}"


def cheaper_note(name: str, tensors: float, of: float) -> str:
    """Of a task some of whose tensors came without loss, for with some they would have taken more."""
    return f"{name}: {tensors:.0f} of {of:.0f} tensors bit for bit, since that is cheaper"


def lossless_note(name: str, tensors: float, plain: float, coded: float, form: str | None) -> str:
    """Of a task with tensors that no mask fits: their bytes, what they take, and the checkpoint's form if quantized."""
    what = "of types that no mask fits" if form is None else f"of a quantized checkpoint ({form})"
    count = f"{tensors:.0f} tensor{'' if tensors == 1 else 's'}"
    return f"{name}: {count} {what}, packed without loss: {size(plain)} → {size(coded)}"
