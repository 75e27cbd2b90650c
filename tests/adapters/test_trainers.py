"""LoRA files of other trainers than PEFT's: they come back byte for byte, and merge as diffusers fuses them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.test_adapters import same
from matrix.kinds import _stable_diffusion
from safetensors.torch import load_file, save_file

import tallstore
from tallstore.errors import MissingExtraError, OptionError, WrongBaseError

State = dict[str, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("default")
FORMS = ("kohya", "diffusers", "diffusers-described")


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of each other
        yield


class Files:
    """A pipeline's folder, and one LoRA of its unet and text encoder in the forms of three trainers."""

    def __init__(self, home: Path) -> None:
        import peft
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers

        self.base = home / "base"
        with quiet():
            torch.manual_seed(0)
            pipeline = _stable_diffusion()
            pipeline.save_pretrained(self.base)
            config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_out.0", "ff.net.0.proj"])
            text = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "out_proj", "fc1"])
            pipeline.unet.add_adapter(config)
            encoder = peft.get_peft_model(pipeline.text_encoder, text)
            draw = torch.Generator().manual_seed(1)
            for module in (pipeline.unet, encoder):
                for name, parameter in module.named_parameters():
                    if "lora" in name:
                        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
            unet = peft.get_peft_model_state_dict(pipeline.unet)
            inner = {
                f"text_model.{n.removeprefix('base_model.model.').removeprefix('text_model.')}": t
                for n, t in peft.get_peft_model_state_dict(encoder).items()
            }
            layers = {
                "unet_lora_layers": unet,
                "text_encoder_lora_layers": convert_state_dict_to_diffusers(inner),
            }
            described = {
                "unet_lora_adapter_metadata": config.to_dict(),
                "text_encoder_lora_adapter_metadata": text.to_dict(),
            }
            StableDiffusionPipeline.save_lora_weights(home / "plain", **layers)
            StableDiffusionPipeline.save_lora_weights(home / "described", **layers, **described)
        kohya = {}
        for prefix, state in (("lora_unet_", unet), ("lora_te_", inner)):
            for name, tensor in state.items():
                module, _, role = name.rpartition(".lora_")
                called = prefix + module.replace(".", "_")
                kohya[f"{called}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = tensor.contiguous()
                kohya[f"{called}.alpha"] = torch.tensor(3.0)
        (home / "kohya").mkdir()
        save_file(kohya, home / "kohya" / "style.safetensors", metadata={"ss_network_dim": "2", "ss_title": "style"})
        self.paths = {
            "kohya": home / "kohya" / "style.safetensors",
            "diffusers": home / "plain" / "pytorch_lora_weights.safetensors",
            "diffusers-described": home / "described" / "pytorch_lora_weights.safetensors",
        }

    def load(self, folder: Path | None = None) -> Any:
        from diffusers import StableDiffusionPipeline

        with quiet():
            return StableDiffusionPipeline.from_pretrained(
                folder or self.base, tokenizer=None, safety_checker=None, feature_extractor=None
            )

    def fused(self, form: str) -> State:
        pipeline, path = self.load(), self.paths[form]
        with quiet():
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
            pipeline.fuse_lora(components=["unet", "text_encoder"])
            pipeline.unload_lora_weights()
        return state_of(pipeline)


def state_of(pipeline: Any) -> State:
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "vae": pipeline.vae}
    return {f"{part}/{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    pytest.importorskip("diffusers", reason="pipelines are made with diffusers")
    pytest.importorskip("peft", reason="adapters are made with PEFT")
    return Files(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lone", [True, False])
def test_it_comes_back_byte_for_byte_and_merges_as_diffusers_fuses_it(
    files: Files, tmp_path: Path, form: str, lone: bool
) -> None:
    path = files.paths[form]
    report = tallstore.pack(files.base, {"a": path if lone else path.parent}, tmp_path / "zoo.tall")
    assert report.tasks["a"].adapter == ("KOHYA" if form == "kohya" else "DIFFUSERS")
    expected = files.fused(form)
    assert not same(expected, state_of(files.load()))
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(zoo.state_dict("a"), load_file(path))
        zoo.export("a", tmp_path / "out")
        state = zoo.state_dict("a", merged=True)
        assert same(state, {name: expected[name] for name in state})
        zoo.export("a", tmp_path / "merged", merged=True)
    assert [each.name for each in (tmp_path / "out").iterdir()] == [path.name]
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert same(state_of(files.load(tmp_path / "merged")), expected)


def test_on_a_component_alone(files: Files, tmp_path: Path) -> None:
    tensors = load_file(files.paths["kohya"])
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("lora_unet_")}
    tallstore.pack(files.base / "unet", {"unet": own, "both": tensors}, tmp_path / "zoo.tall")
    unet, expected = files.load().unet, files.fused("kohya")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.load_into(unet, "unet")
        assert same(
            dict(unet.state_dict()),
            {name.removeprefix("unet/"): tensor for name, tensor in expected.items() if name.startswith("unet/")},
        )
        with pytest.raises(OptionError, match=r"no module 'text_model\..* load_lora_weights"):
            zoo.state_dict("both", merged=True)
        zoo.export("both", tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors"), tensors)


def test_more_than_a_plain_product_is_kept_and_not_merged(files: Files, tmp_path: Path) -> None:
    tensors = load_file(files.paths["kohya"])
    first = next(iter(tensors)).partition(".")[0]
    tasks = {
        "dora": {**tensors, f"{first}.dora_scale": torch.ones(4, 1)},
        "loha": {f"{first}.hada_w1_a": torch.ones(4, 2), f"{first}.alpha": torch.tensor(1.0)},
    }
    report = tallstore.pack(files.base, tasks, tmp_path / "zoo.tall")
    assert {task.adapter for task in report.tasks.values()} == {"KOHYA"}
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, state in tasks.items():
            assert same(zoo.state_dict(task), state)
            with pytest.raises(OptionError, match=r"more than a plain low-rank product.* load_lora_weights"):
                zoo.state_dict(task, merged=True)


def test_of_another_base_it_is_refused(files: Files, tmp_path: Path) -> None:
    for form in FORMS:
        tensors = load_file(files.paths[form])
        wide = {n: torch.cat([t, t], 1) if t.ndim == 2 else t for n, t in tensors.items()}
        with pytest.raises(WrongBaseError, match="does not fit the base's"):
            tallstore.pack(files.base, {"a": wide}, tmp_path / "zoo.tall")
        with pytest.raises(WrongBaseError, match="no module for tensor"):
            tallstore.pack({"other.weight": torch.zeros(4, 4)}, {"a": tensors}, tmp_path / "zoo.tall")


def test_without_diffusers_it_says_so(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tallstore.pack(files.base, {"a": files.paths["kohya"]}, tmp_path / "zoo.tall")
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with tallstore.open(tmp_path / "zoo.tall") as zoo, pytest.raises(MissingExtraError, match="pip install diffusers"):
        zoo.state_dict("a", merged=True)
