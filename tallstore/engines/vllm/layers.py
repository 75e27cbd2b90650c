"""Which of vLLM's layers are whole once their parameters are written and vLLM's own method has prepared them.

Layers without loss of form: unquantized matrices and tables, and modules that compute from their parameters as they
are. All else (quantized layers, experts, attention that keeps products of other layers' matrices) goes by vLLM's own
reload.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

__all__ = ["finish", "is_plain", "straight_is_safe"]

_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


def straight_is_safe(model: nn.Module) -> bool:
    """Whether no layer of a model keeps what it made of another layer's parameters."""
    zen = getattr(current_platform, "is_zen_cpu", bool)  # its matrices may go on using the memory that they came from
    return not zen() and all(type(m) is Attention for m in model.modules() if is_deferred_attention_layer(m))


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is one of these."""
    method = getattr(module, "quant_method", None)
    if method is None:
        return not hasattr(module, "process_weights_after_loading")
    return type(method) in _METHODS


def finish(module: Any) -> None:
    """Have a layer prepared for the device, as vLLM does behind every loading."""
    if getattr(module, "quant_method", None) is not None:
        module.quant_method.process_weights_after_loading(module)
