"""diffusers: components, variants, shards, pipelines; each comes back as the stock loader expects it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import import_later

import tallstore
from tallstore.errors import CheckpointError, WrongBaseError

from .folders import around, assert_same_weights, copied, files_of, nudged, saved

diffusers = import_later("diffusers")
transformers = pytest.importorskip("transformers")
Pipeline = Callable[..., Path]


def unet() -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip


def vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip


def text_encoder(width: int = 16) -> Any:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64, hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Gives a pipeline folder of its own; of a fine-tune, by its seed, only the unet moved. Each is made once."""
    made = tmp_path_factory.mktemp("pipelines")

    def give(root: Path, seed: int = 0) -> Path:
        if not (made / str(seed)).exists():
            write_pipeline(made / str(seed), seed)
        return copied(made / str(seed), root)

    return give


def write_pipeline(root: Path, seed: int) -> None:
    torch.manual_seed(0)
    parts = {"unet": unet(), "vae": vae(), "text_encoder": text_encoder()}
    if seed:
        nudged(parts["unet"], seed)
    for name, model in parts.items():
        model.save_pretrained(root / name)
    diffusers.DDIMScheduler().save_pretrained(root / "scheduler")
    index = {"_class_name": "LDMTextToImagePipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    (root / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10MB", "50KB"])
def test_a_component_in_one_file_or_in_shards(variant: str | None, shard: str, tmp_path: Path) -> None:
    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder, variant=variant, max_shard_size=shard)

    base, tasks = saved(tmp_path, unet, save)
    report, out = around(base, tasks, tmp_path)
    assert not report.warnings
    for task, folder in tasks.items():
        wanted = diffusers.UNet2DConditionModel.from_pretrained(folder, variant=variant).state_dict()
        found = diffusers.UNet2DConditionModel.from_pretrained(out[task], variant=variant).state_dict()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        back = zoo.export("a", tmp_path / "cut", exact=True, max_shard_size=60_000)
    assert len(list(back.glob("*.safetensors"))) > 1
    found = diffusers.UNet2DConditionModel.from_pretrained(back, variant=variant).state_dict()
    wanted = diffusers.UNet2DConditionModel.from_pretrained(tasks["a"], variant=variant).state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_pickled_component_comes_back_where_diffusers_finds_it(tmp_path: Path) -> None:
    base, tasks = saved(tmp_path, unet, lambda model, folder: model.save_pretrained(folder, safe_serialization=False))
    _, out = around(base, tasks, tmp_path)
    assert files_of(out["a"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    diffusers.UNet2DConditionModel.from_pretrained(out["a"])
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        back = zoo.export("a", tmp_path / "torch", exact=True, weights_format="torch")
    assert files_of(back) == files_of(tasks["a"])
    wanted, found = (torch.load(f / "diffusion_pytorch_model.bin", weights_only=True) for f in (tasks["a"], back))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_pipeline_is_one_task_of_several_components(tmp_path: Path, pipeline: Pipeline) -> None:
    base = pipeline(tmp_path / "base")
    tasks = {"a": pipeline(tmp_path / "a", 1), "b": pipeline(tmp_path / "b", 2)}
    report, out = around(base, tasks, tmp_path)
    assert not report.warnings
    for task, folder in tasks.items():
        assert files_of(out[task]) == files_of(folder)
        assert_same_weights(folder, out[task])
        diffusers.UNet2DConditionModel.from_pretrained(out[task], subfolder="unet")
        diffusers.AutoencoderKL.from_pretrained(out[task], subfolder="vae")
        transformers.CLIPTextModel.from_pretrained(out[task], subfolder="text_encoder")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert set(zoo.components("a")) == {"unet", "vae", "text_encoder"}
        one = zoo.state_dict("a", component="unet", exact=True)
        assert all(
            torch.equal(one[k], v)
            for k, v in load_file(tasks["a"] / "unet" / "diffusion_pytorch_model.safetensors").items()
        )
        whole = zoo.state_dict("a", exact=True)
        assert {name.removeprefix("unet/") for name in whole if name.startswith("unet/")} == set(one)
        alone = zoo.export("a", tmp_path / "alone", component="unet", exact=True)
        assert files_of(alone) == files_of(tasks["a"] / "unet")
        with pytest.raises(tallstore.errors.OptionError, match=r"'prior'.*'unet'"):
            zoo.state_dict("a", component="prior")


def test_a_component_that_did_not_move_costs_next_to_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    base = pipeline(tmp_path / "base")
    report = tallstore.pack(base, {"a": pipeline(tmp_path / "a", 1)}, tmp_path / "zoo.tall")
    alone = tallstore.pack(base / "unet", {"a": tmp_path / "a" / "unet"}, tmp_path / "unet.tall")
    files = {path for path in files_of(tmp_path / "a") if path.endswith(".json")}
    extra = sum((tmp_path / "a" / name).stat().st_size for name in files)
    assert report.tasks["a"].bytes - alone.tasks["a"].bytes < extra + 20_000
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        found = zoo.state_dict("a", component="vae")
        wanted = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_unet_of_a_base_that_is_a_pipeline(tmp_path: Path, pipeline: Pipeline) -> None:
    base, task = pipeline(tmp_path / "base"), pipeline(tmp_path / "a", 1) / "unet"
    report, out = around(base, {"a": task}, tmp_path)
    assert not report.tasks["a"].private.keys() & {"conv_in.weight"}
    assert_same_weights(task, out["a"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "vae"), "names the component 'vae'"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_a_pipeline_that_lacks_a_component_is_refused(
    spoil: Any, message: str, tmp_path: Path, pipeline: Pipeline
) -> None:
    base, task = pipeline(tmp_path / "base"), pipeline(tmp_path / "a", 1)
    spoil(task)
    with pytest.raises(CheckpointError, match=message) as caught:
        tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall")
    assert str(task) in str(caught.value)
    assert not (tmp_path / "zoo.tall").exists()


def test_a_component_of_another_base_is_refused(tmp_path: Path, pipeline: Pipeline) -> None:
    base, task = pipeline(tmp_path / "base"), pipeline(tmp_path / "a", 1)
    shutil.rmtree(task / "text_encoder")
    torch.manual_seed(5)
    text_encoder(24).save_pretrained(task / "text_encoder")
    with pytest.raises(WrongBaseError, match="text_encoder") as caught:
        tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall")
    assert str(task) in str(caught.value)
    assert not (tmp_path / "zoo.tall").exists()


def test_a_component_loads_as_a_transformers_model(tmp_path: Path, pipeline: Pipeline) -> None:
    base, task = pipeline(tmp_path / "base"), pipeline(tmp_path / "a", 1)
    tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall", exact="all")
    found = tallstore.from_pretrained(tmp_path / "zoo.tall", component="text_encoder", exact=True).state_dict()
    wanted = transformers.CLIPTextModel.from_pretrained(task, subfolder="text_encoder").state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_several_models_in_the_place_of_one_component_all_travel(tmp_path: Path, pipeline: Pipeline) -> None:
    """As pipelines with several control networks are saved: `controlnet`, `controlnet_1`, named once."""
    for name, seed in (("base", 0), ("a", 1)):
        root = pipeline(tmp_path / name, seed)
        for at, folder in enumerate(("controlnet", "controlnet_1", "controlnet_2")):
            torch.manual_seed(at)
            nudged(unet(), 10 * at + seed if seed else 0).save_pretrained(root / folder)
        index = json.loads((root / "model_index.json").read_text())
        index["controlnet"] = ["diffusers.pipelines.controlnet.multicontrolnet", "MultiControlNetModel"]
        (root / "model_index.json").write_text(json.dumps(index))
    report, out = around(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path)
    assert not report.warnings
    assert files_of(out["a"]) == files_of(tmp_path / "a")
    assert_same_weights(tmp_path / "a", out["a"])
    (tmp_path / "a" / "controlnet_1" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"controlnet_1.*holds no weights"):
        tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "other.tall")


def test_weights_once_more_and_others_of_their_names_are_told_apart(tmp_path: Path, pipeline: Pipeline) -> None:
    base, task = pipeline(tmp_path / "base"), pipeline(tmp_path / "a", 1)
    for name, seed in (("unet_ema", 3), ("unet_again", 1)):
        copied(task / "unet", task / name)
        if name == "unet_ema":
            torch.manual_seed(0)
            nudged(unet(), seed).save_pretrained(task / name)
    report = tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall")
    left = report.tasks["a"].left_out
    assert "of other values" in left["unet_ema/diffusion_pytorch_model.safetensors"]
    assert "once more" in left["unet_again/diffusion_pytorch_model.safetensors"]
