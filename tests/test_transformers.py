"""Real transformers models, made on the spot: packed, given back as folders that `from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import BERT, GPT2, VIT, tune
from support import assert_same, bytes_of, same_bits, slots

import tallstore
from tallstore.errors import DamagedError, ModelMismatchError
from tallstore.stores import open_store

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet_transformers")


def load(kind: Any, folder: Path) -> torch.nn.Module:
    """Strictly: nothing missing, nothing left over, nothing of another shape."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert {key: list(names) for key, names in told.items() if names} == {}
    return model.eval()


def with_state(kind: Any, folder: Path, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The model that the state dict says, made without our export."""
    model = kind(kind.config_class.from_pretrained(folder)).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A bare BERT (names without prefix), and classifiers of it with 2, 3 and 6 labels."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    base = transformers.BertModel(transformers.BertConfig(**BERT))
    base.save_pretrained(folder / "base")
    tasks = {}
    for seed, labels in ((1, 2), (2, 3), (3, 6)):
        config = transformers.BertConfig(**BERT, num_labels=labels)
        model = transformers.BertForSequenceClassification(config)
        model.bert.load_state_dict(base.state_dict())
        tune(model, seed).save_pretrained(folder / f"labels{labels}")
        (folder / f"labels{labels}" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
        tasks[f"labels{labels}"] = folder / f"labels{labels}"
    return folder / "base", tasks


@pytest.mark.parametrize(("recipe", "name"), [("solo", "zoo.tall"), ("fit", "zoo")])
def test_bert_classifiers(recipe: str, name: str, bert: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, tasks = bert
    target = tmp_path / name
    report = tallstore.pack(base, tasks, target, recipe=recipe)
    words = torch.arange(20).reshape(2, 10)
    kind = transformers.BertForSequenceClassification
    with tallstore.open(target) as zoo:
        zoo.verify(against=tasks)
        for task, folder in tasks.items():
            out = zoo.export(task, target.with_name(f"out-{task}"))
            assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
            state = zoo.state_dict(task)
            assert_same(dict(sorted(load_file(out / "model.safetensors").items())), dict(sorted(state.items())))
            model, original = load(kind, out), load(kind, folder)
            with torch.no_grad():
                logits = model(words).logits
                assert torch.equal(logits, with_state(kind, out, state)(words).logits)
                assert logits.shape == (2, int(task.removeprefix("labels")))
                moved = (logits - original(words).logits).norm() / original(words).logits.norm()
            assert moved < 0.5
            for head in ("classifier.weight", "classifier.bias"):
                assert same_bits(state[head], load_file(folder / "model.safetensors")[head]), "heads are exact"
            assert report.tasks[task].missing == ()
            assert 0 < report.tasks[task].relative_error < 1
            assert load(transformers.AutoModelForSequenceClassification, out).config.num_labels == logits.shape[1]


def test_shards_load(bert: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, tasks = bert
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    kind = transformers.BertForSequenceClassification
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        out = zoo.export("labels3", tmp_path / "out", max_shard_size="20KB")
        assert len(list(out.glob("model-*-of-*.safetensors"))) > 3
        assert_same(load(kind, out).state_dict(), with_state(kind, out, zoo.state_dict("labels3")).state_dict())


def test_a_tied_gpt2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    tuned = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    tuned.load_state_dict(base.state_dict())
    tune(tuned, 1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    tasks = {"file": tmp_path / "tuned", "module": tuned}
    tallstore.pack(tmp_path / "base", tasks, tmp_path / "zoo.tall", recipe="fit")
    words = torch.arange(12).reshape(1, 12)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert "lm_head.weight" not in zoo.state_dict("file"), "save_pretrained leaves it out"
        state = zoo.state_dict("module")
        assert zoo.tensors("module")["lm_head.weight"].kind == "tied"
        assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
        model = load(transformers.GPT2LMHeadModel, zoo.export("file", tmp_path / "out"))
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
        fresh = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
        zoo.load_into(fresh, "module")
        other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
        zoo.load_into(other, "file")
    with torch.no_grad():
        logits = model(words).logits
        assert torch.equal(logits, fresh(words).logits)
        assert torch.equal(logits, other(words).logits), "a checkpoint without the tied name fits a tied model"
        before = (tuned(words).logits - base(words).logits).norm()
        assert (logits - tuned(words).logits).norm() < before


def test_vit_classifiers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = transformers.ViTModel(transformers.ViTConfig(**VIT))
    base.save_pretrained(tmp_path / "base")
    tasks = {}
    for seed, (name, labels, dtype) in enumerate((("digits", 10, torch.float32), ("cars", 196, torch.bfloat16)), 1):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=labels))
        model.vit.load_state_dict({n: t for n, t in base.state_dict().items() if n in model.vit.state_dict()})
        tune(model, seed).to(dtype).save_pretrained(tmp_path / name)
        tasks[name] = tmp_path / name
    report = tallstore.pack(tmp_path / "base", tasks, tmp_path / "zoo.tall", recipe="fit")
    assert all(name.startswith("pooler") for name in report.tasks["digits"].missing)
    assert report.tasks["digits"].missing
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    kind = transformers.ViTForImageClassification
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, folder in tasks.items():
            out = zoo.export(task, tmp_path / "out" / task)
            state = zoo.state_dict(task)
            # What transformers saves has older names than its module: only its own loader brings them together.
            twin = tmp_path / "twin" / task
            twin.mkdir(parents=True)
            save_file(state, twin / "model.safetensors", {"format": "pt"})
            (twin / "config.json").write_bytes((folder / "config.json").read_bytes())
            model, wanted = load(kind, out), load(kind, twin)
            assert_same(model.state_dict(), wanted.state_dict())
            with torch.no_grad():
                assert torch.equal(model(image.to(model.dtype)).logits, wanted(image.to(model.dtype)).logits)
    assert {str(t.dtype) for t in state.values()} == {"torch.bfloat16"}


# load_into.


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def packed_bert(bert: tuple[Path, dict[str, Path]], tmp_path: Path) -> Iterator[tallstore.Zoo]:
    tallstore.pack(*bert, tmp_path / "zoo")
    with tallstore.open(tmp_path / "zoo") as zoo:
        yield zoo


def classifier(**config: Any) -> torch.nn.Module:
    torch.manual_seed(5)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**{**BERT, **config}))


def test_load_into_writes_in_place(packed_bert: tallstore.Zoo) -> None:
    model = classifier(num_labels=3)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    packed_bert.load_into(model, "labels3")
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert_same(model.state_dict(), {name: packed_bert.state_dict("labels3")[name] for name in model.state_dict()})
    assert all(parameter.requires_grad for parameter in model.parameters())
    half = classifier(num_labels=3).to(torch.bfloat16)
    packed_bert.load_into(half, "labels3")
    assert same_bits(half.classifier.weight, model.classifier.weight.to(torch.bfloat16)), (
        "converted to the model's type"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_labels": 2}, r"of another shape: 'classifier.weight' \(model \[2, 32\], task \[3, 32\]\) and 1 more"),
        ({"num_labels": 3, "num_hidden_layers": 1}, r"the model lacks 'bert.encoder.layer.1"),
        ({"num_labels": 3, "num_hidden_layers": 3}, r"the task lacks 'bert.encoder.layer.2"),
        ({"num_labels": 3, "vocab_size": 91}, r"of another shape: 'bert.embeddings.word_embeddings.weight'"),
    ],
)
def test_load_into_is_strict_and_writes_nothing(
    config: dict[str, int], message: str, packed_bert: tallstore.Zoo
) -> None:
    model = classifier(**config)
    before = copy_of(model)
    with pytest.raises(ModelMismatchError, match=message) as caught:
        packed_bert.load_into(model, "labels3")
    assert "nothing was written" in str(caught.value)
    assert "'labels3'" in str(caught.value)
    assert_same(model.state_dict(), before)


def test_load_into_a_model_without_memory_is_refused(packed_bert: tallstore.Zoo) -> None:
    """On the meta device there is nothing to write to: to say nothing would be to lose the weights silently."""
    with torch.device("meta"):
        model = classifier(num_labels=3)
    with pytest.raises(ModelMismatchError, match="meta"):
        packed_bert.load_into(model, "labels3")


def test_load_into_from_a_damaged_archive_writes_nothing(packed_bert: tallstore.Zoo) -> None:
    part = Path(packed_bert.url) / "tasks" / "labels3" / "mask.safetensors"
    data = bytearray(part.read_bytes())
    data[slots(bytes(data))[0] + 50] ^= 1
    part.write_bytes(data)
    model = classifier(num_labels=3)
    before = copy_of(model)
    with tallstore.open(packed_bert.url) as zoo, pytest.raises(DamagedError, match=r"tasks/labels3/mask\.safetensors"):
        zoo.load_into(model, "labels3")
    assert_same(model.state_dict(), before)


# Stock loaders that are given our parts must fail loudly, never load codes as weights.


def test_an_archive_is_no_model_to_transformers(packed_bert: tallstore.Zoo) -> None:
    root = Path(packed_bert.url)
    before = bytes_of(root)
    for folder in (root, root / "base", root / "tasks" / "labels3", root / "vector"):
        for kind in (transformers.AutoModel, transformers.BertModel, transformers.AutoModelForSequenceClassification):
            with pytest.raises((OSError, ValueError)):
                kind.from_pretrained(folder, local_files_only=True)
    assert bytes_of(root) == before


@pytest.mark.parametrize("recipe", ["fit", "solo"])
@pytest.mark.parametrize("codecs", [("planes+zstd", "bits+zstd"), ("raw", "bits")])
def test_a_part_is_no_weights_to_stock_loaders(
    recipe: str, codecs: tuple[str, str], bert: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    tallstore.pack(*bert, tmp_path / "zoo", recipe=recipe, base_codec=codecs[0], mask=codecs[1])
    parts = sorted((tmp_path / "zoo").rglob("*.safetensors"))
    assert parts
    for part in parts:
        state = load_file(part)
        assert all(tensor.dtype == torch.uint8 and tensor.dim() == 1 for tensor in state.values())
        model = classifier(num_labels=3)
        with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
            model.load_state_dict(state)
        for target in (model, model.bert):
            before = copy_of(target)
            told = ""
            try:
                found = target.load_state_dict(state, strict=False)
            except RuntimeError as error:
                told = str(error)
            assert "size mismatch" in told or not set(state) & set(before), f"{part}: {found}"


def test_a_part_passed_off_as_a_model_is_refused_by_transformers(
    bert: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    tallstore.pack(*bert, tmp_path / "zoo", recipe="fit")
    for part in sorted((tmp_path / "zoo").rglob("*.safetensors")):
        folder = tmp_path / part.relative_to(tmp_path / "zoo").as_posix().replace("/", "-")
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(part.read_bytes())
        (folder / "config.json").write_bytes((bert[1]["labels3"] / "config.json").read_bytes())
        with pytest.raises((OSError, ValueError, RuntimeError)):
            transformers.BertForSequenceClassification.from_pretrained(folder)


def test_a_single_file_is_no_checkpoint(bert: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    tallstore.pack(*bert, tmp_path / "zoo.tall")
    with pytest.raises(Exception, match=r"(?i)header|invalid|safetensor"):
        load_file(tmp_path / "zoo.tall")
    with pytest.raises(Exception, match=r"(?i)fail|invalid|pickle|error|constants"):
        torch.load(tmp_path / "zoo.tall", weights_only=True)
    with open_store(tmp_path / "zoo.tall") as store:
        assert "model.safetensors" not in {path.split("/")[-1] for path in store.paths()}


def test_packing_an_archive_as_a_checkpoint_is_refused(bert: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Someone will: `tallstore pack zoo/ …`. Codes must not be taken for weights."""
    tallstore.pack(*bert, tmp_path / "zoo")
    tallstore.pack(*bert, tmp_path / "zoo.tall")
    for source in (
        tmp_path / "zoo",
        tmp_path / "zoo.tall",
        tmp_path / "zoo" / "base",
        tmp_path / "zoo" / "tasks" / "labels3",
    ):
        with pytest.raises(tallstore.errors.CheckpointError) as caught:
            tallstore.pack(source, {"t": bert[1]["labels3"]}, tmp_path / "again.tall")
        assert str(source) in str(caught.value)
    assert not (tmp_path / "again.tall").exists()
