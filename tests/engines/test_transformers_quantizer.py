"""Thin folders, loaded by transformers' own loader: the real one, on models made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import serving
from processes import Forks
from safetensors.torch import save_file
from small_models import BERT, WORDS, tune
from support import assert_same, bytes_of

import tallstore
from tallstore.errors import (
    CheckpointError,
    NoSuchTaskError,
    NotAnArchiveError,
    OptionError,
    OutputExistsError,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

ADAPTER = "adapter_model.safetensors"


def fork_of(base: Any, kind: Any, config: Any, seed: int) -> Any:
    """A model of the class with the base's weights and a head of its own, moved a little."""
    torch.manual_seed(seed)
    model = kind(config)
    body = model if type(base) is kind else getattr(model, model.base_model_prefix)
    body.load_state_dict(base.state_dict(), strict=False)
    return tune(model, seed)


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bert/zoo.tall` (classifiers), `gpt/zoo` (bf16, tied, sharded) and `moe/zoo.tall` (experts that are merged)."""
    root = tmp_path_factory.mktemp("zoos")
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**BERT))
    bert.save_pretrained(root / "bert" / "base")
    for seed, task in enumerate(("one", "two"), 1):
        config = transformers.BertConfig(**BERT, num_labels=2 + seed)
        folder = root / "bert" / task
        fork_of(bert, transformers.BertForSequenceClassification, config, seed).save_pretrained(folder)
        (folder / "words.txt").write_text("\n".join(WORDS))
        transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    gpt_config = transformers.GPT2Config(vocab_size=70, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    gpt = transformers.GPT2LMHeadModel(gpt_config).to(torch.bfloat16)
    moe_config = transformers.MixtralConfig(**BERT, num_key_value_heads=2, num_local_experts=3)
    moe = transformers.MixtralForCausalLM(moe_config)
    for name, base, config in (("gpt", gpt, gpt_config), ("moe", moe, moe_config)):
        base.save_pretrained(root / name / "base")
        for seed, task in enumerate(("one", "two"), 1):
            made = fork_of(base, type(base), config, seed).to(base.dtype)
            made.save_pretrained(root / name / task, max_shard_size="10KB")
    for name, form in (("bert", "zoo.tall"), ("gpt", "zoo"), ("moe", "zoo.tall")):
        folder = root / name
        tasks = {task: folder / task for task in ("one", "two")}
        tallstore.pack(folder / "base", tasks, folder / form, quality="lossless")
    return root


KINDS = {
    "bert": ("zoo.tall", "AutoModelForSequenceClassification"),
    "gpt": ("zoo", "AutoModelForCausalLM"),
    "moe": ("zoo.tall", "AutoModelForCausalLM"),
}


def thin(zoos: Path, kind: str, out: Path, task: str = "one", **how: Any) -> Path:
    with tallstore.open(zoos / kind / KINDS[kind][0]) as zoo:
        return zoo.export_thin(task, out, **how)


def load(kind: str, folder: Path, **how: Any) -> Any:
    return getattr(transformers, KINDS[kind][1]).from_pretrained(folder, **how)


@pytest.mark.parametrize("how", [{}, {"dtype": "float16"}, {"device_map": {"": "cpu"}}], ids=["plain", "f16", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thin_folder_loads_as_the_plain_one(kind: str, how: dict[str, Any], zoos: Path, tmp_path: Path) -> None:
    folder = thin(zoos, kind, tmp_path / "thin")
    assert sum(len(data) for data in bytes_of(folder).values()) < 8000
    found, told = load(kind, folder, output_loading_info=True, **how)
    wanted = load(kind, zoos / kind / "one", **how)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(found) is type(wanted)
    assert found.dtype == wanted.dtype
    assert_same(found.state_dict(), wanted.state_dict())
    ids = torch.arange(6)[None]
    assert torch.equal(found(ids).logits, wanted(ids).logits)


def test_the_model_is_a_plain_one_and_is_saved_as_one(zoos: Path, tmp_path: Path) -> None:
    model = load("gpt", thin(zoos, "gpt", tmp_path / "thin"))
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert_same(load("gpt", tmp_path / "saved").state_dict(), load("gpt", zoos / "gpt" / "one").state_dict())
    wanted = load("gpt", zoos / "gpt" / "one").generate(torch.arange(4)[None], max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(torch.arange(4)[None], max_new_tokens=6, do_sample=False), wanted)


def test_layers_may_stay_on_the_disk(zoos: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "disk"}
    how = {"device_map": places, "offload_folder": tmp_path / "off"}
    found = load("bert", thin(zoos, "bert", tmp_path / "thin"), **how)
    ids = torch.arange(6)[None]
    assert found.classifier.weight.is_meta
    assert torch.equal(found(ids).logits, load("bert", zoos / "bert" / "one")(ids).logits)


def test_a_pipeline_takes_the_folder(zoos: Path, tmp_path: Path) -> None:
    folder = thin(zoos, "bert", tmp_path / "thin", task="two")
    found = transformers.pipeline("text-classification", model=str(folder), device="cpu")("a b c")
    assert found == transformers.pipeline("text-classification", model=str(zoos / "bert" / "two"), device="cpu")(
        "a b c"
    )


def test_a_trainer_trains_it_as_it_trains_the_plain_one(zoos: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    rows = [{"input_ids": torch.arange(i, i + 5), "labels": torch.tensor(i % 3)} for i in range(4)]
    trained = []
    for folder in (thin(zoos, "bert", tmp_path / "thin"), zoos / "bert" / "one"):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[],
            save_strategy="no", disable_tqdm=True, seed=3,
        )  # fmt: skip
        trainer = transformers.Trainer(load("bert", folder), arguments, train_dataset=rows)
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert_same(*trained)
    before = load("bert", zoos / "bert" / "one").state_dict()
    assert not torch.equal(trained[0]["classifier.weight"], before["classifier.weight"])


def test_exact_and_adapters_and_referenced_bases(zoos: Path, tmp_path: Path) -> None:
    where, layer = tmp_path / "lora", "encoder.layer.0.attention.self.query"
    pair = {f"lora_{each}": 0.1 * torch.randn(shape) for each, shape in (("A", (2, 32)), ("B", (32, 2)))}
    where.mkdir()
    save_file({f"base_model.model.{layer}.{name}.weight": value for name, value in pair.items()}, where / ADAPTER)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "base_model_name_or_path": ""}
    (where / "adapter_config.json").write_text(json.dumps(said))
    tallstore.pack(
        zoos / "bert" / "base", {"one": zoos / "bert" / "one", "lora": where}, tmp_path / "zoo",
        quality="small", exact=["one"], base_storage="reference",
    )  # fmt: skip
    with tallstore.open(tmp_path / "zoo", base=zoos / "bert" / "base") as zoo:
        zoo.export_thin("one", tmp_path / "rough", base=zoos / "bert" / "base")
        zoo.export_thin("one", tmp_path / "exact", exact=True, base=zoos / "bert" / "base")
        zoo.export_thin("lora", tmp_path / "model", base=zoos / "bert" / "base")
        rough = load("bert", tmp_path / "rough").state_dict()
        assert_same(rough, {name: zoo.state_dict("one")[name] for name in rough})
        with pytest.raises(OptionError, match="not packed with exact"):
            zoo.export_thin("lora", tmp_path / "no", exact=True)
    plain = load("bert", zoos / "bert" / "one").state_dict()
    assert_same(load("bert", tmp_path / "exact").state_dict(), plain)
    base = transformers.AutoModel.from_pretrained(zoos / "bert" / "base").state_dict()
    found = transformers.AutoModel.from_pretrained(tmp_path / "model").state_dict()
    moved = f"{layer}.weight"
    assert torch.allclose(found[moved], base[moved] + 2 * pair["lora_B"] @ pair["lora_A"])
    assert all(torch.equal(found[name], value) for name, value in base.items() if name != moved)


def test_where_the_archive_is(zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(zoos / "gpt" / "zoo", tmp_path / "here" / "zoo")
    with tallstore.open(tmp_path / "here" / "zoo") as zoo:
        zoo.export_thin("one", tmp_path / "here" / "models" / "one")
        zoo.export_thin("one", tmp_path / "apart")
    wanted = load("gpt", zoos / "gpt" / "one").state_dict()
    monkeypatch.chdir(tmp_path / "here" / "models")
    assert_same(load("gpt", Path("one")).state_dict(), wanted)
    assert_same(load("gpt", tmp_path / "apart").state_dict(), wanted)
    (tmp_path / "here").rename(tmp_path / "there")
    assert_same(load("gpt", tmp_path / "there" / "models" / "one").state_dict(), wanted)
    with pytest.raises(NotAnArchiveError, match="there is nothing there"):
        load("gpt", tmp_path / "apart")


def test_what_is_refused(zoos: Path, tmp_path: Path) -> None:
    folder = thin(zoos, "bert", tmp_path / "thin")
    with pytest.raises(OutputExistsError):
        thin(zoos, "bert", folder)
    thin(zoos, "bert", folder, overwrite=True)
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"]["task"] = "three"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(NoSuchTaskError, match="no task 'three'; there are one, two"):
        load("bert", folder)
    said["quantization_config"]["task"] = ["one"]
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="names no archive and task"):
        load("bert", folder)
    with pytest.raises(NoSuchTaskError):
        thin(zoos, "bert", tmp_path / "none", task="none")
    base = {"w": torch.ones(300)}
    tallstore.pack(base, {"a": {"w": base["w"] + 0.1}}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo, pytest.raises(OptionError, match=r"no config\.json of a model"):
        zoo.export_thin("a", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_pointer_is_no_checkpoint_to_pack(zoos: Path, tmp_path: Path) -> None:
    folder = thin(zoos, "bert", tmp_path / "thin")
    with pytest.raises(CheckpointError, match="thin"):
        tallstore.pack(zoos / "bert" / "base", {"one": folder}, tmp_path / "again.tall")


WITHOUT = """
import sys
from tallstore.engines.on_import import register_with_transformers
hooks, sys.meta_path[:] = sys.meta_path[:], [each for each in sys.meta_path if "tallstore" not in type(each).__module__]
assert len(hooks) == len(sys.meta_path) + 1  # as if tallstore had not been imported
from transformers import AutoModelForSequenceClassification as Model
where = {"subfolder": "models/one", "cache_dir": args[0]}
try:
    Model.from_pretrained("user/zoo", **where)
except Exception as error:
    print("failed:", type(error).__name__)
register_with_transformers()  # as `import tallstore` does where transformers is there already
found = Model.from_pretrained("user/zoo", **where).state_dict()
wanted = Model.from_pretrained(args[1]).state_dict()
print("same:", found.keys() == wanted.keys() and all((found[name] == value).all().item() for name, value in wanted.items()))
"""


@pytest.mark.slow  # a process that imports transformers
def test_a_pushed_archive_loads_from_the_hub_and_without_tallstore_nothing_does(
    zoos: Path, tmp_path: Path, forks: Forks
) -> None:
    with serving(tokens={"hf_goodgoodgood": "user"}) as hub:
        tallstore.push(zoos / "bert" / "zoo.tall", "user/zoo", token="hf_goodgoodgood", endpoint=hub.url)
        files = hub.files("user/zoo")
        assert {path for path in files if path.startswith("models/")} == {
            f"models/{task}/{name}" for task in ("one", "two") for name in ("config.json", "model.safetensors")
        }
        assert 'AutoModel.from_pretrained("user/zoo", subfolder="models/one")' in files["README.md"].decode()
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        code, out = forks.run(WITHOUT, str(tmp_path / "cache"), str(zoos / "bert" / "one"), env=env)
        assert code == 0, out
        assert "Unknown quantization type, got tallstore" in out
        assert "failed: SafetensorError" in out
        assert "same: True" in out
        assert not [path for _, path in hub.requests if "/tasks/two/" in path]
        with tallstore.open(zoos / "bert" / "zoo.tall") as zoo:
            smaller = zoo.write_subset(["two"], tmp_path / "smaller.tall")
        report = tallstore.push(smaller, "user/zoo", token="hf_goodgoodgood", endpoint=hub.url)
        assert {path for path in report.delete if path.startswith("models/")} == {
            "models/one/config.json", "models/one/model.safetensors"
        }  # fmt: skip
