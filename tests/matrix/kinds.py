"""Kinds of checkpoint that people have, made small by the libraries that write them.

A kind says how its library makes a model, saves it to a folder and loads it back. Models are so small that a cell of
the matrix takes a second; their structure (names in files and in memory, ties, fused experts, components, sub-folders,
companions) is the library's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matrix import quantized

__all__ = ["ADAPTERS", "KINDS", "AdapterKind", "Kind", "parameters_of"]

SMALL_TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = SMALL_TEXT | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
ENCODER = SMALL_TEXT | {"intermediate_size": 64, "max_position_embeddings": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PATCHES = {"image_size": 32, "patch_size": 8, "num_channels": 3}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of checkpoint."""

    name: str
    library: str
    """Its import name."""
    make: Callable[[], Any]
    """An untrained model."""
    save: Callable[[Any, Path], None]
    """As its library saves it."""
    load: Callable[[Path], Any]
    """As its library loads it."""
    auto: str | None = None
    """The transformers class that `tallstore.from_pretrained` is asked for; None for what is not a transformers model."""
    module: bool = True
    """Whether what is loaded is one `nn.Module`, that `load_into` and `switcher` can write to."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Cell → why it is refused; the error must say so."""
    tune: Callable[[Any, int], Any] | None = None
    """Makes a fine-tune, by its seed, where noise on parameters is none."""
    vision: bool = False
    """Whether it needs torchvision, which is kept in a folder of its own."""


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and floating-point buffers by the names in memory; of a pipeline those of its modules."""
    if isinstance(model, nn.Module):
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modules = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    return {f"{at}/{name}": tensor for at, part in modules.items() for name, tensor in parameters_of(part).items()}


def _pretrained(library: str, cls: str) -> Any:
    import importlib

    return getattr(importlib.import_module(library), cls)


def _save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)


def _configured(config: str, cls: str, options: Mapping[str, Any]) -> Any:
    kind = _pretrained("transformers", config)
    nested = {}
    for name, value in options.items():
        nested[name] = value() if callable(value) else value
    return _pretrained("transformers", cls)(kind(**nested))


def _loaded(library: str, cls: str, folder: Path, **options: Any) -> Any:
    return _pretrained(library, cls).from_pretrained(folder, **options)


def text(name: str, config: str, cls: str, *, save: Mapping[str, Any] | None = None, **options: Any) -> Kind:
    """A transformers model."""
    return Kind(
        name=name,
        library="transformers",
        make=partial(_configured, config, cls, options),
        save=partial(_save, **(save or {})),
        load=partial(_loaded, "transformers", cls),
        auto=cls,
    )


def _part(config: str, **options: Any) -> Callable[[], Any]:
    return lambda: _pretrained("transformers", config)(**options)


def _tuple(*values: Any) -> list[Any]:
    return list(values)


TRANSFORMERS = (
    text("bert", "BertConfig", "BertForSequenceClassification", **ENCODER),
    text("bert, pre-training heads", "BertConfig", "BertForPreTraining", **ENCODER),
    text("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", vocab_size=99, dim=32, n_layers=2, n_heads=4,
         hidden_dim=64, max_position_embeddings=64),
    text("roberta", "RobertaConfig", "RobertaForSequenceClassification", **ENCODER),
    text("albert", "AlbertConfig", "AlbertModel", embedding_size=16, **ENCODER),
    text("electra", "ElectraConfig", "ElectraModel", embedding_size=16, **ENCODER),
    text("deberta", "DebertaV2Config", "DebertaV2Model", **ENCODER),
    text("modernbert", "ModernBertConfig", "ModernBertModel", pad_token_id=0, bos_token_id=1, eos_token_id=2,
         cls_token_id=1, sep_token_id=2, **ENCODER),
    text("gpt2, tied", "GPT2Config", "GPT2LMHeadModel", vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    text("gpt-neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", **ENCODER),
    text("opt", "OPTConfig", "OPTForCausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2,
         num_attention_heads=4, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32),
    text("bloom, fused qkv", "BloomConfig", "BloomForCausalLM", vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    text("llama, tied", "LlamaConfig", "LlamaForCausalLM", tie_word_embeddings=True, **DECODER),
    text("llama, untied", "LlamaConfig", "LlamaForCausalLM", tie_word_embeddings=False, **DECODER),
    text("llama, shards", "LlamaConfig", "LlamaForCausalLM", save={"max_shard_size": "30KB"}, **DECODER),
    text("mistral", "MistralConfig", "MistralForCausalLM", **DECODER),
    text("mixtral, experts", "MixtralConfig", "MixtralForCausalLM", **DECODER, **EXPERTS),
    text("qwen2-moe, experts", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=32, **DECODER,
         **EXPERTS),
    text("qwen3-moe, experts", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", head_dim=8, **DECODER, **EXPERTS),
    text("qwen3", "Qwen3Config", "Qwen3ForCausalLM", head_dim=8, **DECODER),
    text("gemma2", "Gemma2Config", "Gemma2ForCausalLM", head_dim=8, **DECODER),
    text("phi3, fused gate and up", "Phi3Config", "Phi3ForCausalLM", pad_token_id=0, **DECODER),
    text("mamba", "MambaConfig", "MambaForCausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4),
    text("t5, tied", "T5Config", "T5ForConditionalGeneration", vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2,
         num_heads=4),
    text("bart, tied", "BartConfig", "BartForConditionalGeneration", vocab_size=99, d_model=32, encoder_layers=2,
         decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
         max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
         forced_eos_token_id=2),
    text("marian", "MarianConfig", "MarianMTModel", vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2,
         encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
         max_position_embeddings=64, pad_token_id=98, bos_token_id=0, eos_token_id=0, decoder_start_token_id=98,
         forced_eos_token_id=0),
    text("whisper, tied", "WhisperConfig", "WhisperForConditionalGeneration", vocab_size=99, d_model=32,
         encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
         decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=32, max_target_positions=32, pad_token_id=98,
         bos_token_id=97, eos_token_id=96, decoder_start_token_id=95, suppress_tokens=None,
         begin_suppress_tokens=None),
    text("vit", "ViTConfig", "ViTForImageClassification", **IMAGE, **PATCHES),
    text("dinov2", "Dinov2Config", "Dinov2Model", **IMAGE, **PATCHES),
    text("swin", "SwinConfig", "SwinModel", image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4],
         window_size=4),
    text("convnext", "ConvNextConfig", "ConvNextModel", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    text("resnet", "ResNetConfig", "ResNetForImageClassification", embedding_size=16, hidden_sizes=[16, 32],
         depths=[1, 1], layer_type="basic"),
    text("clip, two towers", "CLIPConfig", "CLIPModel", projection_dim=16,
         text_config=lambda: ENCODER | {"eos_token_id": 2}, vision_config=lambda: IMAGE | PATCHES),
    text("siglip", "SiglipConfig", "SiglipModel", text_config=lambda: dict(ENCODER),
         vision_config=lambda: IMAGE | PATCHES),
    text("llava", "LlavaConfig", "LlavaForConditionalGeneration", image_token_index=98,
         text_config=_part("LlamaConfig", **DECODER), vision_config=_part("CLIPVisionConfig", **IMAGE, **PATCHES)),
    text("qwen2-vl", "Qwen2VLConfig", "Qwen2VLForConditionalGeneration",
         text_config=lambda: DECODER | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
         vision_config=lambda: {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "patch_size": 8}),
    text("detr", "DetrConfig", "DetrForObjectDetection", d_model=32, encoder_layers=1, decoder_layers=1,
         encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=5,
         use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
         backbone_config=_part("ResNetConfig", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1],
                               layer_type="basic", out_features=["stage2"])),
    text("segformer", "SegformerConfig", "SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1],
         sr_ratios=[2, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2], patch_sizes=[7, 3], strides=[4, 2],
         mlp_ratios=[2, 2], decoder_hidden_size=32),
    text("wav2vec2, weight norm", "Wav2Vec2Config", "Wav2Vec2ForCTC", **ENCODER, conv_dim=[16, 16], conv_kernel=[4, 4],
         conv_stride=[2, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2),
    text("hubert", "HubertConfig", "HubertModel", **ENCODER, conv_dim=[16, 16], conv_kernel=[4, 4], conv_stride=[2, 2],
         num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2),
)  # fmt: skip


def _bf16_llama() -> Any:
    return _configured("LlamaConfig", "LlamaForCausalLM", DECODER | {"hidden_size": 64}).to(torch.bfloat16)


def _pickled(model: Any, folder: Path) -> None:
    """As libraries saved models before safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


FORMS = (
    Kind(name="llama in bfloat16", library="transformers", make=_bf16_llama, save=_save,
         load=partial(_loaded, "transformers", "LlamaForCausalLM", dtype=torch.bfloat16), auto="LlamaForCausalLM"),
    Kind(name="bert as a pickle", library="transformers",
         make=partial(_configured, "BertConfig", "BertForSequenceClassification", ENCODER), save=_pickled,
         load=partial(_loaded, "transformers", "BertForSequenceClassification"), auto="BertForSequenceClassification"),
)  # fmt: skip


def _unet() -> Any:
    return _pretrained("diffusers", "UNet2DModel")(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip


def _vae() -> Any:
    return _pretrained("diffusers", "AutoencoderKL")(
        block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _dit() -> Any:
    return _pretrained("diffusers", "DiTTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        norm_num_groups=4,
    )  # fmt: skip


def _ddpm() -> Any:
    diffusers = _pretrained("diffusers", "DDPMPipeline")
    return diffusers(unet=_unet(), scheduler=_pretrained("diffusers", "DDPMScheduler")())


def _stable_diffusion() -> Any:
    unet = _pretrained("diffusers", "UNet2DConditionModel")(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    encoder = _configured("CLIPTextConfig", "CLIPTextModel", ENCODER)
    return _pretrained("diffusers", "StableDiffusionPipeline")(
        vae=_vae(), text_encoder=encoder, tokenizer=None, unet=unet, scheduler=_pretrained("diffusers", "DDIMScheduler")(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _diffusers(name: str, cls: str, make: Callable[[], Any], *, module: bool = True, **save: Any) -> Kind:
    loading = {"variant": save["variant"]} if "variant" in save else {}
    if not module and cls == "StableDiffusionPipeline":
        loading |= {"tokenizer": None, "safety_checker": None, "feature_extractor": None}
    return Kind(
        name=name,
        library="diffusers",
        make=make,
        save=partial(_save, **save),
        load=partial(_loaded, "diffusers", cls, **loading),
        module=module,
    )


DIFFUSERS = (
    _diffusers("diffusers unet", "UNet2DModel", _unet),
    _diffusers("diffusers vae, variant", "AutoencoderKL", _vae, variant="fp16"),
    _diffusers("diffusers transformer, shards", "DiTTransformer2DModel", _dit, max_shard_size="60KB"),
    _diffusers("diffusers pipeline (ddpm)", "DDPMPipeline", _ddpm, module=False),
    _diffusers("diffusers pipeline (stable diffusion)", "StableDiffusionPipeline", _stable_diffusion, module=False),
)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(90)))


def _tokenizer() -> Any:
    """A word-level tokenizer, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def _bert_folder(folder: Path, cls: str, **more: Any) -> Path:
    from transformers import PreTrainedTokenizerFast

    _configured("BertConfig", cls, ENCODER | more).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), mask_token="[MASK]", **special).save_pretrained(folder)
    return folder


def _sentences(*kinds: str) -> Any:
    import tempfile

    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts

    if kinds == ("static",):
        return SentenceTransformer(modules=[parts.StaticEmbedding(_tokenizer(), embedding_dim=32)])
    with tempfile.TemporaryDirectory() as place:
        words = parts.Transformer(str(_bert_folder(Path(place), "BertModel")))
    stack: list[Any] = [words, parts.Pooling(32)]
    if "dense" in kinds:
        stack.append(parts.Dense(32, 24))
    return SentenceTransformer(modules=stack)


def _sparse() -> Any:
    import tempfile

    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import models as parts

    with tempfile.TemporaryDirectory() as place:
        masked = parts.MLMTransformer(str(_bert_folder(Path(place), "BertForMaskedLM")))
    return SparseEncoder(modules=[masked, parts.SpladePooling()])


def _cross() -> Any:
    import tempfile

    from sentence_transformers import CrossEncoder

    with tempfile.TemporaryDirectory() as place:
        return CrossEncoder(str(_bert_folder(Path(place), "BertForSequenceClassification", num_labels=1)), num_labels=1)


def _sentence_kind(name: str, make: Callable[[], Any], cls: str = "SentenceTransformer") -> Kind:
    return Kind(
        name=name,
        library="sentence_transformers",
        make=make,
        save=lambda model, folder: model.save_pretrained(str(folder)),
        load=lambda folder: _pretrained("sentence_transformers", cls)(str(folder), device="cpu"),
    )


SENTENCES = (
    _sentence_kind("sentence-transformers", partial(_sentences, "plain")),
    _sentence_kind("sentence-transformers, dense", partial(_sentences, "dense")),
    _sentence_kind("sentence-transformers, static embedding", partial(_sentences, "static")),
    _sentence_kind("sentence-transformers, splade", _sparse, "SparseEncoder"),
    _sentence_kind("sentence-transformers, cross-encoder", _cross, "CrossEncoder"),
)


def _timm() -> Any:
    import timm

    return timm.create_model("test_resnet", pretrained=False, num_classes=5)


def _save_timm(model: Any, folder: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(model, str(folder), model_config={"num_classes": 5}, safe_serialization=True)


def _load_timm(folder: Path) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True)


CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
}


def _open_clip() -> Any:
    from open_clip import model

    return model.CLIP(**CLIP)


def _save_open_clip(model: Any, folder: Path) -> None:
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    if callable(save_config_for_hf):
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))


def _load_open_clip(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}")


VISION = (
    Kind(name="timm", library="timm", make=_timm, save=_save_timm, load=_load_timm, vision=True),
    Kind(name="open_clip", library="open_clip", make=_open_clip, save=_save_open_clip, load=_load_open_clip,
         vision=True),
)  # fmt: skip


QUANTIZED = tuple(
    Kind(name=name, library="safetensors", make=partial(quantized.make, form), save=quantized.save, load=quantized.load,
         module=False, tune=quantized.tuner(form), refused={"merge": "cannot be merged|cannot be summed"})
    for form, name in quantized.FORMS.items()
)  # fmt: skip


KINDS = (*TRANSFORMERS, *FORMS, *DIFFUSERS, *SENTENCES, *VISION, *QUANTIZED)
"""Every kind of model; adapters are behind them."""


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter, of PEFT's, on a small model with its embedding and head tied."""

    name: str
    config: str
    """The class of its configuration."""
    options: Mapping[str, Any]

    def make(self) -> Any:
        """The base."""
        return _configured("LlamaConfig", "LlamaForCausalLM", DECODER | {"tie_word_embeddings": True})

    def save(self, model: Any, folder: Path, seed: int) -> None:
        """An adapter of the base in memory, every tensor of it at random."""
        adapted = _pretrained("peft", "get_peft_model")(model, _pretrained("peft", self.config)(**self.options))
        noise = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                middle = 1.0 if "ia3" in name or "magnitude" in name else 0.0
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=noise) + middle
        adapted.save_pretrained(folder)

    def merged(self, base: Path, folder: Path) -> Any:
        """The model that PEFT makes of base and adapter."""
        model = _loaded("transformers", "LlamaForCausalLM", base)
        return _pretrained("peft", "PeftModel").from_pretrained(model, folder).merge_and_unload()


_LOW_RANK = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
ADAPTERS = (
    AdapterKind(name="adapter, lora", config="LoraConfig", options=_LOW_RANK),
    AdapterKind(name="adapter, dora", config="LoraConfig", options={**_LOW_RANK, "use_dora": True}),
    AdapterKind(name="adapter, lora with modules_to_save", config="LoraConfig",
                options={**_LOW_RANK, "modules_to_save": ["norm"]}),
    AdapterKind(name="adapter, lora with trained tokens", config="LoraConfig",
                options={**_LOW_RANK, "trainable_token_indices": [1, 3]}),
    AdapterKind(name="adapter, ia3", config="IA3Config",
                options={"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
)  # fmt: skip
"""Adapters, whose tasks are kept bit for bit."""
