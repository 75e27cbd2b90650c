"""`adapter_config.json`: what is read of it to merge. It may be anybody's, so each value is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tallstore.errors import FormatError
from tallstore.format import strict_json

__all__ = ["AdapterConfig"]

_ORDINARY = {"use_rslora", "use_dora", "use_label_mask", "use_gks"}
_STRUCTURE = ("alora_invocation_tokens", "layer_replication", "target_parameters", "arrow_config", "megatron_config")
_INITIAL = ("pissa", "olora")
"""Initial values that are taken out of the base's weights, the same every time: PEFT does it again to merge."""
_PLAIN_INITIAL = ("gaussian", "eva", "orthogonal")
_NESTED = re.compile(r"\([^()]*[*+{][^()]*\)[*+{?]")
"""Expressions that can take forever to match."""


@dataclass(frozen=True)
class AdapterConfig:
    """A parsed `adapter_config.json`."""

    facts: Mapping[str, Any]
    where: str
    """How messages name it."""

    @classmethod
    def parse(cls, data: bytes, where: str) -> AdapterConfig:
        """Parse. Raises FormatError for what is no JSON object."""
        facts = strict_json.loads(data, where)
        if not isinstance(facts, dict):
            raise FormatError(f"{where}: not a JSON object")
        return cls(facts, where)

    @property
    def type(self) -> str:
        """PEFT's name of the method."""
        kind = self.facts.get("peft_type")
        if not isinstance(kind, str) or not re.fullmatch(r"[A-Z0-9_]{1,64}", kind, re.ASCII):
            raise FormatError(f"{self.where}: peft_type {kind!r} is no type of an adapter")
        return kind

    @property
    def plain(self) -> bool:
        """Whether it is LoRA without any of the variants that change the arithmetic."""
        odd = [key for key, value in self.facts.items() if key.startswith("use_") and value and key not in _ORDINARY]
        variants = [self.facts.get(key) for key in ("use_dora", "kasa_config", "monteclora_config", "velora_config")]
        initial = self.facts.get("init_lora_weights") in _INITIAL
        return self.type == "LORA" and not odd and not any(variants) and not initial

    @property
    def unmergeable(self) -> str | None:
        """A setting with which the adapter cannot be merged into the base's tensors one by one."""
        initial = self.facts.get("init_lora_weights")
        if isinstance(initial, str) and initial not in (*_INITIAL, *_PLAIN_INITIAL):
            return f"init_lora_weights {initial!r}"
        return next((key for key in _STRUCTURE if self.facts.get(key)), None)

    @property
    def initial(self) -> str | bool:
        """How PEFT begins where it merges: `True`, but for what changes the base's weights before it trains."""
        initial = self.facts.get("init_lora_weights")
        return initial if initial in _INITIAL else True

    @property
    def transposed(self) -> bool:
        """Whether layers are said to store their weights as (in, out)."""
        return bool(self.facts.get("fan_in_fan_out"))

    def scaling(self, module: str, rank: int) -> float:
        """What a module's low-rank product is multiplied by: alpha / r, or alpha / √r with rsLoRA."""
        alpha = self._number(self._patterned("alpha_pattern", module, self.facts.get("lora_alpha", 8)), "lora_alpha")
        return alpha / math.sqrt(rank) if self.facts.get("use_rslora") else alpha / rank

    def tokens(self, module: str) -> list[int]:
        """Rows of a module's embedding that are trained."""
        indices = self.facts.get("token_indices" if self.type == "TRAINABLE_TOKENS" else "trainable_token_indices")
        if isinstance(indices, dict):
            keys = [key for key in indices if module == key or module.endswith(f".{key}")]
            indices = indices[max(keys, key=len)] if keys else None
        if not isinstance(indices, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
            raise FormatError(f"{self.where}: no token indices for {module!r}")
        return indices

    def _patterned(self, key: str, module: str, default: Any) -> Any:
        """The value of the first pattern that the end of a module's name matches, as PEFT chooses it."""
        patterns = self.facts.get(key) or {}
        if not isinstance(patterns, dict):
            raise FormatError(f"{self.where}: {key} is not an object")
        for pattern, value in patterns.items():
            if _NESTED.search(pattern) or len(pattern) > 1000:
                raise FormatError(f"{self.where}: {key}: {pattern!r} is too complicated to be matched here")
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise FormatError(f"{self.where}: {key}: {pattern!r} is no expression ({error})") from error
        return default

    def _number(self, value: Any, key: str) -> float | int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FormatError(f"{self.where}: {key} {value!r} is not a number")
        return value
