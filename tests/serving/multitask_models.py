"""Small models of two kinds, their fine-tunes, and what each gives alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import near
from torch import Tensor, nn

import tallstore

transformers = pytest.importorskip("transformers")

KINDS = {
    "default": {},
    "small": {"quality": "small"},
    "high": {"quality": "high"},
    "many bits": {"bits": 3.0},
    "shared": {"recipe": "fit"},
    "shared f32": {"recipe": "tall", "vector": "f32"},
    "shared q8": {"recipe": "fit", "vector": "q8"},
    "one scale": {"recipe": "emr"},
    "shared bf16": {"recipe": "mean", "vector": "bf16"},
    "without loss": {"quality": "lossless"},
    "raw": {"base_codec": "raw"},
}
BERT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def bert(labels: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return (
        transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=labels)).to(dtype).eval()
    )


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(dtype).eval()


def tuned(make: Callable[..., nn.Module], seed: int, *args: object, size: float = 0.02) -> nn.Module:
    """A model whose every tensor is a little elsewhere; most rows of tables are not."""
    model = make(*args)
    with torch.no_grad():
        for n, (_, tensor) in enumerate(model.named_parameters()):
            moved = near(tensor.detach(), seed=100 * seed + n, size=size)
            if len(tensor) == BERT["vocab_size"]:
                moved[seed::3] = tensor[seed::3]
            tensor.copy_(moved)
    return model


def states(models: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {task: model.state_dict() for task, model in models.items()}


def own_logits(
    zoo: tallstore.Zoo, task: str, make: Callable[..., nn.Module], *args: object, **inputs: Tensor
) -> Tensor:
    """What a task's own model gives."""
    model = make(*args)
    zoo.load_into(model, task)
    with torch.no_grad():
        return model(**inputs).logits


def near_enough(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def tokens(rows: int, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


CLASSES = {"a": 2, "b": 5, "c": 3}
