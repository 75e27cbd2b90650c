"""The mark of a task that is an adapter: a few tensors that are added to a base, not a model of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tallstore.errors import FormatError
from tallstore.format.names import check_path

__all__ = ["CONFIG", "WEIGHTS", "Adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of an adapter's folder, as PEFT calls them."""
_TYPE = re.compile(r"[A-Z0-9_]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What the manifest says of an adapter."""

    type: str
    """PEFT's name of the method, `LORA`, `IA3`, `PROMPT_TUNING`; or whose file it is: `KOHYA`, `DIFFUSERS`,
    `ORIGINAL` (names as the publisher of the model has them)."""
    base_files: str = ""
    """What the names of those of the task's files begin with that are the base model's own: `base_model/`. They lie
    beside the weights of the merged model, and not in the adapter's folder. Empty where there are none."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": self.type} | ({"base_files": self.base_files} if self.base_files else {})

    @classmethod
    def from_json(cls, value: Any, where: str) -> Adapter:
        """Parse and validate."""
        if not isinstance(value, dict) or not isinstance(value.get("type"), str) or not _TYPE.fullmatch(value["type"]):
            raise FormatError(f"{where}: no type of an adapter")
        prefix = value.get("base_files", "")
        if not isinstance(prefix, str) or (prefix and (prefix[-1] != "/" or check_path(prefix[:-1]) != prefix[:-1])):
            raise FormatError(f"{where}: base_files {prefix!r} is no folder with a slash behind it")
        return cls(type=value["type"], base_files=prefix)
