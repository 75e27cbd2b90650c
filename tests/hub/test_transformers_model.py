"""A task of a zoo as a transformers model: real small models, made on the spot, from a Hub on this machine."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Hub, serving
from safetensors.torch import load_file
from small_models import BERT, GPT2, VIT, WORDS, tune
from support import assert_same, bytes_of, same_bits

import tallstore
from tallstore.errors import (
    CheckpointError,
    DamagedError,
    DeviceError,
    MissingExtraError,
    ModelMismatchError,
    NoSuchTaskError,
    NotAnArchiveError,
    OptionError,
    UnreachableError,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet_transformers")


def kinds() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """By name: the class of a base, the class of its tasks, and the configuration."""
    return {
        "bert": (transformers.BertModel, transformers.BertForSequenceClassification, BERT),
        "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2LMHeadModel, GPT2),
        "vit": (transformers.ViTModel, transformers.ViTForImageClassification, VIT),
    }


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per kind a folder `KIND/zoo`; the tasks' own folders are `KIND/one` and `KIND/two`."""
    root = tmp_path_factory.mktemp("zoos")
    for name, (base_class, task_class, config) in kinds().items():
        folder = root / name
        torch.manual_seed(0)
        base = base_class(base_class.config_class(**config))
        base.save_pretrained(folder / "base")
        for seed, task in enumerate(("one", "two"), 1):
            own = {"num_labels": 2 + seed} if name != "gpt2" else {}
            torch.manual_seed(seed)
            model = task_class(task_class.config_class(**config, **own))
            body = model if name == "gpt2" else getattr(model, name)
            body.load_state_dict(base.state_dict(), strict=False)
            tune(model, seed).save_pretrained(folder / task)
        if name == "bert":
            for task in ("one", "two"):
                tokenizer(folder / task, lower=task == "one")
        if name == "vit":
            for task in ("one", "two"):
                transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / task)
        if name == "gpt2":
            transformers.GenerationConfig(max_new_tokens=5, do_sample=False).save_pretrained(folder / "one")
        tallstore.pack(folder / "base", {t: folder / t for t in ("one", "two")}, folder / "zoo")
    return root


def tokenizer(folder: Path, *, lower: bool) -> None:
    (folder / "words.txt").write_text("\n".join(WORDS))
    made = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=lower)
    made.save_pretrained(folder)


@pytest.fixture
def hub(zoos: Path) -> Iterator[Hub]:
    with serving(
        {f"user/{kind}": bytes_of(zoos / kind / "zoo") for kind in kinds()}, {"hf_goodgood": "user"}
    ) as running:
        yield running


@pytest.fixture
def where(hub: Hub, tmp_path: Path) -> dict[str, Any]:
    return {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}


def exported(zoos: Path, kind: str, task: str, out: Path) -> torch.nn.Module:
    """The same task by way of a folder and transformers' own loader."""
    with tallstore.open(zoos / kind / "zoo") as zoo:
        zoo.export(task, out)
    found, told = kinds()[kind][1].from_pretrained(out, output_loading_info=True)
    assert {key: list(names) for key, names in told.items() if names} == {}
    return found.eval()


@pytest.mark.parametrize("task", ["one", "two"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_the_model_is_the_one_that_transformers_itself_loads(
    kind: str, task: str, zoos: Path, where: dict[str, Any], tmp_path: Path
) -> None:
    model = tallstore.from_pretrained(f"user/{kind}", task=task, **where)
    same = exported(zoos, kind, task, tmp_path / "out")
    assert type(model) is kinds()[kind][1]
    assert not model.training
    assert_same(model.state_dict(), same.state_dict())
    left, right = model.config.to_dict(), same.config.to_dict()
    assert {**left, "_name_or_path": ""} == {**right, "_name_or_path": ""}
    assert model.name_or_path == f"user/{kind}"
    given = {"bert": {"input_ids": torch.arange(6).reshape(1, 6)}, "gpt2": {"input_ids": torch.arange(6).reshape(1, 6)},
             "vit": {"pixel_values": torch.ones(1, 3, 16, 16)}}[kind]  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, same(**given).logits, rtol=0, atol=1e-6)
    if kind == "gpt2":
        assert model.lm_head.weight is model.transformer.wte.weight, "what is tied stays tied"
        assert model.generation_config.max_new_tokens == (5 if task == "one" else None)
        assert model.generation_config.to_dict() == same.generation_config.to_dict()


def test_a_local_archive_and_an_address_load_alike(zoos: Path, where: dict[str, Any], hub: Hub) -> None:
    wanted = tallstore.from_pretrained("user/bert", task="one", **where).state_dict()
    commit = hub.commit("user/bert")
    for name in (zoos / "bert" / "zoo", f"hf://user/bert@{commit}", f"user/bert@{commit}"):
        assert_same(tallstore.from_pretrained(name, task="one", **where).state_dict(), wanted)
    web = f"{hub.cdn}/cdn/user/bert/{commit}"
    assert_same(tallstore.from_pretrained(web, task="one").state_dict(), wanted)


def test_only_the_task_s_own_files_are_fetched(zoos: Path, where: dict[str, Any], hub: Hub) -> None:
    tallstore.from_pretrained("user/bert", task="one", **where)
    assert {path for path in hub.got() if path.startswith("tasks/")} == {
        path for path in bytes_of(zoos / "bert" / "zoo") if path.startswith("tasks/one/")
    }
    hub.log.clear()
    tallstore.from_pretrained("user/bert", task="one", local_files_only=True, **where)
    assert hub.log == []
    with pytest.raises(UnreachableError, match="tasks/two/"):
        tallstore.from_pretrained("user/bert", task="two", local_files_only=True, **where)


def test_types_devices_and_words_of_the_configuration(where: dict[str, Any]) -> None:
    half = tallstore.from_pretrained("user/bert", task="one", dtype=torch.bfloat16, **where)
    full = tallstore.from_pretrained("user/bert", task="one", device="cpu", **where)
    assert half.dtype == torch.bfloat16
    assert half.config.dtype == torch.bfloat16
    assert same_bits(half.classifier.weight, full.classifier.weight.to(torch.bfloat16))
    assert tallstore.from_pretrained("user/bert", task="one", dtype="bfloat16", **where).dtype == torch.bfloat16
    for device in ({"": "cpu"}, "cpu", torch.device("cpu")):
        assert tallstore.from_pretrained("user/bert", task="one", device_map=device, **where).device.type == "cpu"
    model = tallstore.from_pretrained(
        "user/bert", task="one", output_attentions=True, attn_implementation="eager", hidden_dropout_prob=0.25, **where
    )
    assert model.config.output_attentions
    assert model.config._attn_implementation == "eager"
    assert model.config.hidden_dropout_prob == 0.25
    assert model(torch.arange(4).reshape(1, 4)).attentions is not None
    _, told = tallstore.from_pretrained("user/bert", task="one", output_loading_info=True, **where)
    assert not any(told.values())


def test_nothing_is_made_at_random_on_the_way(where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way in which torch fills a tensor with random numbers is watched; none is used on a real tensor."""
    filled: list[str] = []
    for name in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
        original = getattr(torch.nn.init, name)

        def watched(
            tensor: torch.Tensor, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any
        ) -> Any:
            if tensor.device.type != "meta":
                filled.append(_name)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.nn.init, name, watched)
    before = torch.get_rng_state()
    tallstore.from_pretrained("user/bert", task="one", **where)
    assert filled == []
    assert torch.equal(torch.get_rng_state(), before)


def test_one_s_own_class_may_be_given(zoos: Path, where: dict[str, Any]) -> None:
    class Mine(transformers.BertForSequenceClassification):  # type: ignore[misc,name-defined]
        pass

    model = tallstore.from_pretrained("user/bert", task="one", model_class=Mine, **where)
    assert type(model) is Mine
    bare = {"words": r"BertModel lacks 'classifier", "kind": transformers.BertModel}
    with pytest.raises(ModelMismatchError, match=bare["words"]):
        tallstore.from_pretrained("user/bert", task="one", model_class=bare["kind"], **where)
    with pytest.raises(ModelMismatchError, match=r"task 'one'.* the task lacks 'bert.encoder.layer.2"):
        tallstore.from_pretrained("user/bert", task="one", num_hidden_layers=3, **where)
    with pytest.raises(ModelMismatchError, match="task 'one'"):
        tallstore.from_pretrained("user/bert", task="one", vocab_size=41, **where)


def test_a_zoo_of_one_task_needs_no_name(zoos: Path, tmp_path: Path) -> None:
    with tallstore.open(zoos / "bert" / "zoo") as zoo:
        zoo.write_subset(["two"], tmp_path / "two.tall")
    assert tallstore.from_pretrained(tmp_path / "two.tall").num_labels == 4


# Decoded weights that are kept.


def kept_in(where: dict[str, Any]) -> list[Path]:
    return sorted(where["cache_dir"].glob("models--*/.tallstore/decoded-*/model.safetensors"))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_kept_weights_load_without_the_archive_s_parts(kind: str, where: dict[str, Any], hub: Hub) -> None:
    name = f"user/{kind}"
    wanted = tallstore.from_pretrained(name, task="one", **where).state_dict()
    assert kept_in(where) == [], "nothing is kept unless it is asked for"
    assert_same(tallstore.from_pretrained(name, task="one", keep_decoded=True, **where).state_dict(), wanted)
    assert len(kept_in(where)) == 1
    for part in where["cache_dir"].glob("models--*/snapshots/*/**/*.safetensors"):
        part.unlink()
    hub.log.clear()
    offline = tallstore.from_pretrained(name, task="one", keep_decoded=True, local_files_only=True, **where)
    assert_same(offline.state_dict(), wanted)
    assert hub.log == []
    before = kept_in(where)[0].read_bytes()
    with torch.no_grad():
        for parameter in offline.parameters():
            parameter.zero_()
    assert kept_in(where)[0].read_bytes() == before, "what is done to the model never reaches the file"
    with pytest.raises(UnreachableError):
        tallstore.from_pretrained(name, task="one", local_files_only=True, **where)


@pytest.mark.filterwarnings("ignore:.*its decoded weights are damaged")
def test_a_kept_byte_that_flips_is_found_wherever_it_is(where: dict[str, Any]) -> None:
    wanted = tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where).state_dict()
    (place,) = kept_in(where)
    for file in (place, place.with_name("sums.json")):
        right = file.read_bytes()
        for at in {*range(0, len(right), max(1, len(right) // 12)), 0, len(right) - 1}:
            file.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :])
            found = tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
            assert_same(found.state_dict(), wanted)
            assert file.read_bytes() == right, "made anew"
        file.write_bytes(right[: len(right) // 2])
        assert_same(tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where).state_dict(), wanted)
        assert file.read_bytes() == right


def test_damage_to_what_is_kept_is_named(where: dict[str, Any]) -> None:
    tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
    (place,) = kept_in(where)
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"user/bert@.*task 'one'.*decoded weights are damaged.*removed"):
        tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)


def test_what_is_kept_outlives_a_commit_that_leaves_the_task_alone(
    zoos: Path, where: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(zoos / "bert" / "zoo", grown)
    tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
    tallstore.add(grown, {"three": zoos / "bert" / "two"})
    hub.repos["user/bert"].add("main", bytes_of(grown), "grown")
    tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
    assert len(kept_in(where)) == 1
    tallstore.from_pretrained("user/bert", task="three", keep_decoded=True, **where)
    assert len(kept_in(where)) == 2
    tallstore.pack(zoos / "bert" / "base", {"one": zoos / "bert" / "two"}, tmp_path / "other")
    hub.repos["user/bert"].add("main", bytes_of(tmp_path / "other"), "another model of the same name")
    other = tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
    assert other.num_labels == 4
    plain = tallstore.from_pretrained("user/bert", task="one", **where)
    assert_same(other.state_dict(), plain.state_dict())


def test_exact_weights_are_kept_by_themselves(zoos: Path, where: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    tallstore.pack(zoos / "bert" / "base", {"one": zoos / "bert" / "one"}, tmp_path / "zoo", exact=True)
    hub.repos["user/bert"].add("main", bytes_of(tmp_path / "zoo"), "exact")
    for _ in range(2):
        for exact in (False, True):
            model = tallstore.from_pretrained("user/bert", exact=exact, keep_decoded=True, **where)
            original = load_file(zoos / "bert" / "one" / "model.safetensors")
            assert same_bits(model.classifier.weight, original["classifier.weight"])
            name = "bert.encoder.layer.0.output.dense.weight"
            assert same_bits(model.state_dict()[name], original[name]) is exact
    assert len(kept_in(where)) == 2


def test_what_a_killed_process_left_is_cleared_away(where: dict[str, Any]) -> None:
    for in_place in (False, True, True):
        tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
        (place,) = kept_in(where)
        shelf = place.parent.parent
        assert {each.name for each in shelf.iterdir() if "decoded" in each.name} == {place.parent.name}
        if not in_place:
            shutil.rmtree(place.parent)
        (shelf / f".{place.parent.name}.partial" / "decoded").mkdir(parents=True)
        (shelf / f".{place.parent.name}.partial" / "decoded" / "model.safetensors").write_bytes(b"half")


def test_where_nothing_can_be_kept(zoos: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="keep_decoded is for archives in the Hub's cache: extract task 'one' once"):
        tallstore.from_pretrained(zoos / "bert" / "zoo", task="one", keep_decoded=True)
    wanted = tallstore.from_pretrained("user/bert", task="one", **where).state_dict()
    (repo,) = where["cache_dir"].glob("models--*")
    (repo / ".tallstore").write_text("in the way")
    with pytest.warns(UserWarning, match="decoded weights cannot be kept"):
        found = tallstore.from_pretrained("user/bert", task="one", keep_decoded=True, **where)
    assert_same(found.state_dict(), wanted)


# Processors.


def test_tokenizer_and_image_processor_load_from_the_same_place(
    zoos: Path, where: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    for task in ("one", "two"):
        found = tallstore.load_processor("user/bert", task=task, **where)
        same = transformers.AutoTokenizer.from_pretrained(zoos / "bert" / task)
        assert found("A b c")["input_ids"] == same("A b c")["input_ids"]
        assert type(found) is type(same)
    assert not [path for path in hub.got() if path.endswith(".safetensors")], "no weights"
    image = tallstore.load_processor("user/vit", task="one", **where)
    assert image.size == {"height": 16, "width": 16}
    found = tallstore.load_processor(zoos / "bert" / "zoo", task="one")
    found.save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("a b")["input_ids"] == found("a b")["input_ids"]


@pytest.mark.usefixtures("few_objects")
def test_a_processor_s_files_go_with_it(zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = tallstore.load_processor(zoos / "bert" / "zoo", task="one")
    assert list(tmp_path.iterdir())
    del found
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_is_whole_for_stock_loaders(zoos: Path, where: dict[str, Any], tmp_path: Path) -> None:
    tallstore.pull("user/bert", tmp_path / "one", tasks="one", **where)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=words, device="cpu")
    assert pipe("a b c")[0]["label"].startswith("LABEL_")
    bare = torch.nn.Linear(32, 3)
    state = load_file(tmp_path / "one" / "model.safetensors")
    bare.load_state_dict({"weight": state["classifier.weight"], "bias": state["classifier.bias"]})
    assert same_bits(bare.weight, model.classifier.weight)


# What is refused.


def edited(zoos: Path, hub: Hub, **config: Any) -> str:
    """The bert zoo packed with another config.json for its task, on the Hub; gives its name."""
    folder = zoos.parent / "edited"
    base, one = zoos / "bert" / "base", folder / "one"
    one.mkdir(parents=True, exist_ok=True)
    for path in (zoos / "bert" / "one").iterdir():
        (one / path.name).write_bytes(path.read_bytes())
    facts = {**json.loads((one / "config.json").read_text()), **config}
    (one / "config.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    tallstore.pack(base, {"one": one}, folder / "zoo", overwrite=True)
    hub.repos["user/bert"].add("main", bytes_of(folder / "zoo"), "edited")
    return "user/bert"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["BertForNothing"]}, "names BertForNothing, which transformers has not: .*model_class"),
        ({"architectures": ["PreTrainedModel"]}, "which transformers has not"),
        ({"architectures": ["pipeline"]}, "which transformers has not"),
        ({"architectures": ["GPT2LMHeadModel"]}, "which transformers has not"),
        ({"architectures": None}, "names no class"),
        ({"model_type": "nonsense"}, "transformers cannot use its config.json"),
        ({"hidden_size": 31}, "does not fit|multiple"),
    ],
)
def test_a_configuration_that_cannot_be_used(
    config: dict[str, Any], words: str, zoos: Path, hub: Hub, where: dict[str, Any]
) -> None:
    with pytest.raises((CheckpointError, ModelMismatchError), match=words) as caught:
        tallstore.from_pretrained(edited(zoos, hub, **config), task="one", **where)
    assert "task 'one'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_an_archive_is_never_run(zoos: Path, hub: Hub, where: dict[str, Any], tmp_path: Path) -> None:
    (zoos.parent / "edited" / "one").mkdir(parents=True, exist_ok=True)
    evil = zoos.parent / "edited" / "one" / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    name = edited(zoos, hub, auto_map=auto, model_type="evil", architectures=["Evil"])
    for load in (tallstore.from_pretrained, tallstore.load_processor):
        with pytest.raises(OptionError, match="never run"):
            load(name, task="one", trust_remote_code=True, **where)
    with pytest.raises(CheckpointError):
        tallstore.from_pretrained(name, task="one", **where)
    tallstore.load_processor(name, task="one", **where)
    assert not (tmp_path / "ran").exists()
    evil.unlink()


def test_what_cannot_be(zoos: Path, where: dict[str, Any], tmp_path: Path, hub: Hub) -> None:
    def refused(error: type[Exception], words: str, name: Any = "user/bert", **how: Any) -> None:
        with pytest.raises(error, match=words) as caught:
            tallstore.from_pretrained(name, **{"task": "one", **where, **how})
        assert "\n" not in str(caught.value)

    refused(NoSuchTaskError, "no task 'three'; there are one, two", task="three")
    refused(NoSuchTaskError, "which task.* there are one, two", task=None)
    refused(NotAnArchiveError, "there is nothing there", tmp_path / "not" / "there" / "at-all")
    refused(OptionError, "leave one of them out", device="cpu", device_map="cpu")
    refused(OptionError, "strict", ignore_mismatched_sizes=True)
    refused(OptionError, "the archive's", state_dict={})
    refused(DeviceError, "torch knows no such device", device="tpu9000")
    refused(DeviceError, "use device='cpu'", device="cuda:77")
    refused(OptionError, "unexpected keyword argument 'no_such_word'", no_such_word=1)
    try:
        import accelerate  # noqa: F401
    except ImportError:
        refused(MissingExtraError, "pip install accelerate", device_map="auto")
    data = bytearray(hub.files("user/bert")["tasks/one/mask.safetensors"])
    data[-30] ^= 1
    hub.files("user/bert")["tasks/one/mask.safetensors"] = bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        refused(DamagedError, "tasks/one/mask.safetensors: damaged", cache_dir=tmp_path / "fresh")


def test_a_task_without_such_files(tmp_path: Path, zoos: Path) -> None:
    state = load_file(zoos / "bert" / "one" / "model.safetensors")
    tallstore.pack(zoos / "bert" / "base", {"plain": state}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"task 'plain': holds no config.json: .*load_into"):
        tallstore.from_pretrained(tmp_path / "plain", task="plain")
    with pytest.raises(CheckpointError, match=r"task 'plain': holds no tokenizer .*\(files: none\)"):
        tallstore.load_processor(tmp_path / "plain", task="plain")
