"""LoRA files that call modules as a model's publisher does: kept byte for byte, merged as the base's pipeline does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix.kinds import _vae
from safetensors.torch import load_file, save_file

import tallstore
from tallstore.errors import OptionError, WrongBaseError

State = dict[str, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("default")
WIDE = 32


def flux() -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip


def wan() -> Any:
    import diffusers

    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=64, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=diffusers.UniPCMultistepScheduler(),
        transformer=transformer,
    )  # fmt: skip


def products(sizes: dict[str, tuple[int, int]], down: str, up: str, alpha: str = "") -> State:
    """Low-rank products of modules, whose outputs and inputs are given."""
    draw = torch.Generator().manual_seed(1)
    made: State = {}
    for module, (rows, columns) in sizes.items():
        made[module + down] = 0.1 * torch.randn(2, columns, generator=draw)
        made[module + up] = 0.1 * torch.randn(rows, 2, generator=draw)
        if alpha:
            made[module + alpha] = torch.tensor(3.0)
    return made


FLUX = {
    "double_blocks_0_img_attn_qkv": (3 * WIDE, WIDE),
    "double_blocks_0_txt_attn_proj": (WIDE, WIDE),
    "double_blocks_0_img_mlp_0": (4 * WIDE, WIDE),
    "single_blocks_0_linear2": (WIDE, 5 * WIDE),
}
PROCESSORS = {"proj_lora1": (WIDE, WIDE), "qkv_lora2": (3 * WIDE, WIDE)}
WAN = {
    f"blocks.{block}.{module}": size
    for block in range(2)
    for module, size in {
        **{f"{attention}.{part}": (WIDE, WIDE) for attention in ("self_attn", "cross_attn") for part in "qkvo"},
        "ffn.0": (64, WIDE),
        "ffn.2": (WIDE, 64),
    }.items()
}
KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight")
FILES: dict[str, tuple[Callable[[], Any], State]] = {
    "flux, kohya": (flux, products({f"lora_unet_{module}": size for module, size in FLUX.items()}, *KOHYA)),
    "flux, processors": (
        flux,
        products({f"double_blocks.0.processor.{m}": s for m, s in PROCESSORS.items()}, ".down.weight", ".up.weight"),
    ),
    "wan, kohya": (
        wan,
        products({f"lora_unet_{module.replace('.', '_')}": size for module, size in WAN.items()}, *KOHYA),
    ),
    "wan, published": (wan, products({f"diffusion_model.{module}": size for module, size in WAN.items()}, *PEFT)),
    "wan, down and up": (wan, products({f"diffusion_model.{m}": size for m, size in WAN.items()}, *KOHYA[:2])),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    pytest.importorskip("diffusers", reason="pipelines are made with diffusers")
    pytest.importorskip("peft", reason="adapters are merged with PEFT's arithmetic")
    out = {}
    for make in (flux, wan):
        torch.manual_seed(0)
        out[make] = tmp_path_factory.mktemp(make.__name__) / "base"
        make().save_pretrained(out[make])
    return out


def fused(make: Callable[[], Any], file: Path) -> State:
    torch.manual_seed(0)
    pipeline = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    state: State = pipeline.transformer.state_dict()
    return state


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "transformer"])
def test_it_comes_back_and_merges_as_the_pipeline_fuses_it(
    bases: dict[Any, Path], tmp_path: Path, name: str, whole: bool
) -> None:
    make, tensors = FILES[name]
    save_file(tensors, file := tmp_path / "style.safetensors", metadata={"format": "pt"})
    base = bases[make] if whole else bases[make] / "transformer"
    component = "transformer/" if whole and make is flux else ""  # of several alone has each its own
    report = tallstore.pack(base, {"a": file}, tmp_path / "zoo.tall")
    assert report.tasks["a"].adapter == ("KOHYA" if "kohya" in name else "ORIGINAL")
    wanted = fused(make, file)
    torch.manual_seed(0)
    start = make().transformer.state_dict()
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.export("a", tmp_path / "out")
        found = zoo.state_dict("a", merged=True)
    back = load_file(tmp_path / "out" / "style.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], tensors[n]) for n in tensors)
    assert [n for n in wanted if not torch.equal(found[f"{component}{n}"], wanted[n])] == []
    assert any(not torch.equal(wanted[n], start[n]) for n in wanted)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"diffusion_model.blocks.0.norm3.diff": torch.ones(WIDE)}, r"norm3\.diff.*more than a plain"),
        (products({"diffusion_model.blocks.0.unknown.z": (WIDE, WIDE)}, *PEFT), "cannot be merged here|cannot convert"),
    ],
)
def test_what_cannot_be_merged_whole_is_kept_and_not_merged(
    bases: dict[Any, Path], tmp_path: Path, extra: State, message: str
) -> None:
    tensors = FILES["wan, published"][1] | extra
    save_file(tensors, tmp_path / "style.safetensors")
    tallstore.pack(bases[wan], {"a": tmp_path / "style.safetensors"}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        state = zoo.state_dict("a")
        assert all(torch.equal(state[n], tensors[n]) for n in tensors)
        with pytest.raises(OptionError, match=message):
            zoo.state_dict("a", merged=True)


@pytest.mark.parametrize("name", ["flux, kohya", "wan, published"])
def test_of_another_base_it_is_refused(bases: dict[Any, Path], tmp_path: Path, name: str) -> None:
    make, tensors = FILES[name]
    wide = {n: torch.zeros(t.shape[0], 48) if t.ndim and t.shape[1] == WIDE else t for n, t in tensors.items()}
    save_file(wide, tmp_path / "style.safetensors")
    with pytest.raises(WrongBaseError, match=r"no weight of the base has 48 inputs"):
        tallstore.pack(bases[make], {"a": tmp_path / "style.safetensors"}, tmp_path / "zoo.tall")
    assert not (tmp_path / "zoo.tall").exists()


def test_what_trainers_put_beside_is_kept(bases: dict[Any, Path], tmp_path: Path) -> None:
    """Embeddings of new words, and norms: the file is an adapter's all the same, and under its own name again."""
    inner = "transformer.single_transformer_blocks.0"
    cases: dict[str, State] = {
        "words": FILES["flux, kohya"][1] | {"bundle_emb.cat.clip_l": torch.ones(2, WIDE)},
        "norms": products({f"{inner}.attn.to_k": (WIDE, WIDE)}, *PEFT)
        | {f"{inner}.attn.norm_k.weight": torch.ones(16)},
        "lycoris": products({"lycoris_single_transformer_blocks_0_attn_to_k": (WIDE, WIDE)}, *KOHYA),
    }
    tasks = {}
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        tasks[name] = tmp_path / f"{name}.safetensors"
    tallstore.pack(bases[flux], tasks, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for name, tensors in cases.items():
            back = load_file(zoo.export(name, tmp_path / "out" / name) / f"{name}.safetensors")
            assert all(torch.equal(back[n], tensors[n]) for n in tensors)
            with pytest.raises(OptionError, match="cannot be merged here"):
                zoo.state_dict(name, merged=True)


def test_models_under_published_names_are_no_adapters(tmp_path: Path) -> None:
    names = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
    for prefix in ("", "model.diffusion_model."):
        base = {prefix + name: torch.randn(64, 64) for name in names}
        task = {name: tensor + 0.01 * torch.randn(64, 64) for name, tensor in base.items()}
        assert tallstore.pack(base, {"a": task}, tmp_path / f"{len(prefix)}.tall").tasks["a"].adapter is None
