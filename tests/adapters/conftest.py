"""Tiny bases, adapters of every kind on them with tensors at random, and what PEFT makes of both."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]


class Convolutions(nn.Module):
    """Layers of one and two dimensions, one of them with a kernel of a single element."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(8, 8, 1)
        self.line = nn.Conv1d(4, 6, 3)


def llama(*, tied: bool = False, layers: int = 1, width: int = 16) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def tied_llama() -> nn.Module:
    return llama(tied=True)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return Convolutions()


@dataclass(frozen=True)
class Case:
    """An adapter: of which model, with which configuration of PEFT's."""

    model: Callable[[], nn.Module]
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


QUERY = {"target_modules": ["q_proj"]}
CASES = {
    "lora": Case(llama, "LoraConfig", {"r": 2, "target_modules": ["q_proj", "down_proj"]}),
    "lora-bf16": Case(llama, "LoraConfig", {"r": 2, **QUERY}, torch.bfloat16),
    "rslora-patterns": Case(
        llama,
        "LoraConfig",
        {
            "r": 3,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 4},
            "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 5},
        },
    ),
    "embedding": Case(llama, "LoraConfig", {"r": 2, "target_modules": ["embed_tokens"]}),
    "embedding-tied": Case(tied_llama, "LoraConfig", {"r": 2, "target_modules": ["embed_tokens"]}),
    "embedding-saved": Case(llama, "LoraConfig", {"r": 2, **QUERY, "modules_to_save": ["embed_tokens"]}),
    "embedding-saved-tied": Case(
        tied_llama,
        "LoraConfig",
        {"r": 2, **QUERY, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embedding-saved-headless": Case(
        bert, "LoraConfig", {"r": 2, "target_modules": ["query"], "modules_to_save": ["word_embeddings"]}
    ),
    "tokens-tied": Case(tied_llama, "LoraConfig", {"r": 2, **QUERY, "trainable_token_indices": [1, 3]}),
    "convolutions": Case(convolutions, "LoraConfig", {"r": 2, "target_modules": ["wide", "point", "line"]}),
    "fan-in-fan-out": Case(
        gpt2, "LoraConfig", {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    ),
    "lora-bias-head": Case(
        bert, "LoraConfig", {"r": 2, "lora_bias": True, "target_modules": ["query"], "modules_to_save": ["classifier"]}
    ),
    "all-biases": Case(
        bert, "LoraConfig", {"r": 2, "bias": "all", "target_modules": ["query"], "task_type": "SEQ_CLS"}
    ),
    "tokens": Case(llama, "LoraConfig", {"r": 2, **QUERY, "trainable_token_indices": [1, 3]}),
    "tokens-alone": Case(llama, "TrainableTokensConfig", {"target_modules": ["embed_tokens"], "token_indices": [1, 3]}),
    "tokens-alone-tied": Case(
        tied_llama, "TrainableTokensConfig", {"target_modules": ["embed_tokens"], "token_indices": [1, 3]}
    ),
    "tokens-of-a-tied-head": Case(
        tied_llama, "LoraConfig", {"r": 2, **QUERY, "trainable_token_indices": {"lm_head": [1, 3]}}
    ),
    "tokens-alone-of-a-tied-head": Case(
        tied_llama, "TrainableTokensConfig", {"target_modules": ["lm_head"], "token_indices": [1, 3]}
    ),
    "tokens-of-one-memory-for-four": Case(
        t5, "TrainableTokensConfig", {"target_modules": ["shared"], "token_indices": [1, 3]}
    ),
    "lora-of-a-tied-head": Case(tied_llama, "LoraConfig", {"r": 2, "target_modules": ["q_proj", "lm_head"]}),
    "layer-norm": Case(llama, "LNTuningConfig", {"target_modules": ["norm"]}),
    "dora": Case(llama, "LoraConfig", {"r": 2, "use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}),
    "dora-bf16": Case(llama, "LoraConfig", {"r": 2, "use_dora": True, **QUERY}, torch.bfloat16),
    "dora-convolutions": Case(convolutions, "LoraConfig", {"r": 2, "use_dora": True, "target_modules": ["wide"]}),
    "ia3": Case(
        bert, "IA3Config", {"target_modules": ["query", "output.dense"], "feedforward_modules": ["output.dense"]}
    ),
    "loha": Case(llama, "LoHaConfig", {"r": 2, **QUERY}),
    "lokr": Case(llama, "LoKrConfig", {"r": 2, **QUERY}),
    "oft": Case(llama, "OFTConfig", {"oft_block_size": 4, **QUERY}),
    "vera": Case(llama, "VeraConfig", {"r": 2, "target_modules": ["q_proj", "down_proj"]}),
    "adalora": Case(llama, "AdaLoraConfig", {"init_r": 2, "target_r": 2, "total_step": 10, **QUERY}),
}
"""Adapters that change weights."""
PLAIN = (
    "lora",
    "lora-bf16",
    "rslora-patterns",
    "embedding",
    "convolutions",
    "fan-in-fan-out",
    "lora-bias-head",
    "tokens",
)
"""Those that need no PEFT to be merged."""
PROMPTS = {
    "prompts": Case(llama, "PromptTuningConfig", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
    "prefixes": Case(llama, "PrefixTuningConfig", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
}
"""Adapters that do not."""


@dataclass(frozen=True)
class Made:
    """A case on disk: the base's folder and the adapter's."""

    case: Case
    base: Path
    adapter: Path

    def model(self) -> nn.Module:
        """The base in memory."""
        return self.case.model().to(self.case.dtype)

    def adapted(self, folder: Path | None = None) -> Any:
        """PEFT's model of the base and an adapter's folder."""
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say of each other
            return peft.PeftModel.from_pretrained(self.model(), str(folder or self.adapter))

    def merged(self, folder: Path | None = None) -> State:
        """What PEFT merges of the base and an adapter's folder."""
        adapted = self.adapted(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(adapted.merge_and_unload().state_dict())


def made(case: Case, folder: Path, seed: int = 1) -> Made:
    """Write a base and an adapter whose tensors are all at random."""
    import peft

    model = case.model().to(case.dtype)
    base = folder / "base"
    if not base.exists():
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(base)
        else:
            base.mkdir(parents=True)
            save_file(model.state_dict(), base / "model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    adapter = folder / f"adapter-{seed}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, getattr(peft, case.config)(**case.options))
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                middle = 1.0 if "ia3" in name or "magnitude" in name else 0.0
                parameter.data = (torch.randn(parameter.shape, generator=draw) * 0.1 + middle).to(parameter.dtype)
        adapted.save_pretrained(adapter)
    return Made(case, base, adapter)


@pytest.fixture(autouse=True)
def _distutils_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """BOFT imports setuptools, which refuses to come after Python's own distutils unless it is told to use that."""
    if sys.version_info < (3, 12):
        monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    pytest.importorskip("peft", reason="adapters are made with PEFT")
    pytest.importorskip("transformers", reason="bases are made with transformers")
    return lambda case, seed=1: made(case, tmp_path, seed)
