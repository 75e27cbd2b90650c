"""Every kind of adapter that PEFT has: merged bit for bit as PEFT merges it, or refused with the reason, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters.conftest import Case, Made, llama
from adapters.test_adapters import same
from safetensors.torch import load_file

import tallstore
from tallstore.errors import OptionError

Make = Callable[..., Made]
Options = dict[str, Any]
BOTH: Options = {"target_modules": ["q_proj", "down_proj"]}
ONE: Options = {"target_modules": ["q_proj"]}
CAUSAL: Options = {"task_type": "CAUSAL_LM"}
BLOCKS: Options = {"oft_block_size": 4, **BOTH}

MERGED: dict[str, tuple[str, Options]] = {
    "hira": ("HiraConfig", {"r": 2, **BOTH}),
    "hra": ("HRAConfig", {"r": 2, **BOTH}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 8, **BOTH}),
    "delora": ("DeloraConfig", {"r": 2, **BOTH}),
    "miss": ("MissConfig", {"r": 2, **BOTH}),
    "miss, bat": ("MissConfig", {"r": 2, "init_weights": "bat", **ONE}),
    "miss, mini": ("MissConfig", {"r": 2, "init_weights": "mini", "mini_r": 2, **BOTH}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, **BOTH}),
    "oft": ("OFTConfig", BLOCKS),
    "oft, by rank": ("OFTConfig", {"r": 4, "oft_block_size": 0, **BOTH}),
    "oft, cayley": ("OFTConfig", {"use_cayley_neumann": False, **BLOCKS}),
    "oft, shared": ("OFTConfig", {"block_share": True, **BLOCKS}),
    "oft, constrained": ("OFTConfig", {"coft": True, "eps": 1e-3, **BLOCKS}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 3, **BOTH}),
    "lokr": ("LoKrConfig", {"r": 2, "decompose_both": True, **BOTH}),
    "vera": ("VeraConfig", {"r": 2, **BOTH}),
    "vera, projections not saved": ("VeraConfig", {"r": 2, "save_projection": False, **BOTH}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 8, "vector_length": 4, **BOTH}),
    "randlora": ("RandLoraConfig", {"r": 2, **BOTH}),
    "road": ("RoadConfig", {"variant": "road_1", "group_size": 4, **BOTH}),
    "shira": ("ShiraConfig", {"r": 2, **BOTH}),
    "c3a": ("C3AConfig", {"block_size": 4, **BOTH}),
    "waveft": ("WaveFTConfig", {"n_frequency": 8, **BOTH}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "adalora": ("AdaLoraConfig", {"init_r": 2, "target_r": 2, "total_step": 10, **BOTH}),
    "layer norm": ("LNTuningConfig", {"target_modules": ["norm", "input_layernorm"]}),
    "lora, olora": ("LoraConfig", {"r": 2, "init_lora_weights": "olora", **BOTH}),
    "lora, pissa": ("LoraConfig", {"r": 2, "init_lora_weights": "pissa", **BOTH}),
    "lora, orthogonal": ("LoraConfig", {"r": 2, "init_lora_weights": "orthogonal", **BOTH}),
}
REFUSED: dict[str, tuple[str, Options, str]] = {
    "gralora": ("GraloraConfig", {"r": 4, "gralora_k": 2, **ONE}, "type GRALORA"),
    "osf": ("OSFConfig", ONE, "type OSF"),
    "tinylora": ("TinyLoraConfig", ONE, "type TINYLORA"),
    "psoft": ("PsoftConfig", {"r": 4, **ONE}, "type PSOFT"),
    "adamss": ("AdamssConfig", ONE, "type ADAMSS"),
    "beft": ("BeftConfig", ONE, "type BEFT"),
    "lily": ("LilyConfig", ONE, "type LILY"),
    "frod": ("FrodConfig", ONE, "type FROD"),
    "pvera": ("PveraConfig", {"r": 2, **ONE}, "type PVERA"),
    "glora": ("GloraConfig", {"r": 2, **ONE}, "type GLORA"),
    "peanut": ("PeanutConfig", ONE, "type PEANUT"),
    "shadow": ("ShadowConfig", ONE, "type SHADOW"),
    "supertuning": ("SupertuningConfig", ONE, "type SUPERTUNING"),
    "deft": ("DeftConfig", ONE, "type DEFT"),
    "poly": ("PolyConfig", {"r": 2, "n_tasks": 2, **ONE}, "type POLY"),
    "unilora": ("UniLoraConfig", {"r": 2, **ONE}, "UNILORA"),
    "adaption prompts": (
        "AdaptionPromptConfig", {"adapter_len": 2, "adapter_layers": 1, **CAUSAL}, "type ADAPTION_PROMPT"
    ),
    "p-tuning": (
        "PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 8, **CAUSAL}, "changes no weights"
    ),
    "multitask prompts": (
        "MultitaskPromptTuningConfig", {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 1, **CAUSAL},
        "changes no weights",
    ),
    "context prompts": (
        "CPTConfig", {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1], **CAUSAL},
        "changes no weights",
    ),
    "cartridges": ("CartridgeConfig", {"num_virtual_tokens": 3, **CAUSAL}, "changes no weights"),
    "lora, layers doubled": ("LoraConfig", {"r": 2, "layer_replication": [[0, 1], [0, 1]], **ONE}, "layer_replication"),
    "lora, from tokens on": ("LoraConfig", {"r": 2, "alora_invocation_tokens": [1], **CAUSAL, **ONE}, "alora_invocation"),
    "lora, pissa at random": ("LoraConfig", {"r": 2, "init_lora_weights": "pissa_niter_2", **ONE}, "pissa_niter_2"),
}  # fmt: skip


def packed(make: Make, config: str, options: Options, target: Path) -> Made:
    peft = pytest.importorskip("peft", reason="adapters are made with PEFT")
    if not hasattr(peft, config):
        pytest.skip(f"this PEFT has no {config}")
    found = make(Case(llama, config, options))
    tallstore.pack(found.base, {"a": found.adapter}, target)
    with tallstore.open(target) as zoo:
        assert same(zoo.state_dict("a"), load_file(found.adapter / "adapter_model.safetensors"))
    return found


@pytest.mark.parametrize("name", MERGED)
def test_it_is_merged_as_peft_merges_it(make: Make, tmp_path: Path, name: str) -> None:
    found = packed(make, *MERGED[name], tmp_path / "zoo.tall")
    expected = found.merged()
    assert not same(expected, dict(found.model().state_dict()))
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(zoo.state_dict("a", merged=True), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_kept_and_not_merged(make: Make, tmp_path: Path, name: str) -> None:
    config, options, why = REFUSED[name]
    packed(make, config, options, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo, pytest.raises(OptionError, match=f"{why}.* load that with PEFT"):
        zoo.state_dict("a", merged=True)


def test_every_kind_that_peft_has_is_among_them() -> None:
    peft = pytest.importorskip("peft", reason="its kinds are counted")
    elsewhere = {"LORA", "PROMPT_TUNING", "PREFIX_TUNING", "TRAINABLE_TOKENS", "XLORA"}
    listed = {peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind].__name__: kind.value for kind in peft.PeftType
              if kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}  # fmt: skip
    tested = {config for config, *_ in [*MERGED.values(), *REFUSED.values()]}
    assert {kind for config, kind in listed.items() if config not in tested} <= elsewhere
