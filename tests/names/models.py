"""Tiny models of transformers whose names in files are not those in memory, or that tie weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEXT = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VISION))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=4))


def qwen2_moe() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(**TEXT, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    return Qwen2MoeForCausalLM(config)


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, num_experts=4, moe_intermediate_size=24, head_dim=8))


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=159
    )
    return LlavaForConditionalGeneration(config)


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision)
    )


def detr() -> Any:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    config = DetrConfig(
        backbone_config=ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        ),
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=20,
        num_labels=3,
    )
    return DetrForObjectDetection(config)


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return BertForSequenceClassification(BertConfig(**config))


def wav2vec2() -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=(16, 16),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    )


def nomic_bert() -> Any:
    """Its files hold query, key and value in one tensor; in memory they are three."""
    from transformers import NomicBertConfig, NomicBertModel

    config = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return NomicBertModel(NomicBertConfig(**config))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=True))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=160, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, tie_word_embeddings=True)
    )


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=160,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
        )
    )


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=160,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=16,
            max_source_positions=32,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


RENAMED: Mapping[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (vit, mixtral, qwen2_moe, qwen3_moe, llava, qwen2_vl, detr, bert, wav2vec2, nomic_bert)
}
TIED: Mapping[str, Callable[[], Any]] = {each.__name__: each for each in (llama, gpt2, t5, bart, whisper)}


def tuned(model: Any, seed: int) -> Any:
    """The model, moved a little in place: every parameter, tied ones once."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 4e-4 * torch.randn(parameter.shape)
    return model


def made(make: Callable[[], Any], folder: Path, tasks: tuple[str, ...] = ("a", "b")) -> type:
    """Folders `base` and one a task, as `save_pretrained` writes them. Gives the model's class."""
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    for seed, task in enumerate(tasks, 1):
        tuned(type(model).from_pretrained(folder / "base"), seed).save_pretrained(folder / task)
    return type(model)


def differs(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Names that one alone has, or whose tensors are not the same to the last bit."""
    return [
        name
        for name in {**left, **right}
        if name not in left or name not in right or not torch.equal(left[name], right[name])
    ]
