"""Adapters as tasks: what goes in comes back, and merges as PEFT merges it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.conftest import CASES, PLAIN, PROMPTS, QUERY, Case, Made, llama, made, tied_llama
from safetensors.torch import load_file, save_file
from support import nothing_dropped
from typer.testing import CliRunner

import tallstore
from tallstore.errors import (
    DamagedError,
    FormatError,
    InputError,
    ModelMismatchError,
    OptionError,
    TallstoreError,
    WrongBaseError,
)

Make = Callable[..., Made]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same names, types and bits."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
    )


def packed(found: Made, tmp_path: Path, **tasks: object) -> Path:
    target = tmp_path / "zoo.tall"
    tallstore.pack(found.base, {"a": found.adapter, **tasks}, target)
    return target


@pytest.mark.parametrize("name", [*CASES, *PROMPTS])
def test_an_adapter_comes_back_as_its_folder(make: Make, tmp_path: Path, name: str) -> None:
    found = make({**CASES, **PROMPTS}[name])
    original = load_file(found.adapter / "adapter_model.safetensors")
    with tallstore.open(packed(found, tmp_path)) as zoo:
        assert same(zoo.state_dict("a"), original)
        zoo.export("a", tmp_path / "out")
        assert zoo.info()["version"] == "1.1"
    assert same(load_file(tmp_path / "out" / "adapter_model.safetensors"), original)
    there, back = ((folder / "adapter_config.json").read_bytes() for folder in (found.adapter, tmp_path / "out"))
    assert there == back
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_is_merged_as_peft_merges_it(make: Make, tmp_path: Path, name: str) -> None:
    found = make(CASES[name])
    expected = found.merged()
    plain = found.model()
    assert not same(expected, dict(plain.state_dict()))
    with tallstore.open(packed(found, tmp_path)) as zoo:
        state = zoo.state_dict("a", merged=True)
        assert same(state, {n: expected[n] for n in state})
        zoo.load_into(plain, "a")
        zoo.export("a", tmp_path / "merged", merged=True)
    assert same(dict(plain.state_dict()), expected)
    assert same(load_file(tmp_path / "merged" / "model.safetensors"), state)
    if (found.base / "config.json").exists():
        assert (tmp_path / "merged" / "config.json").read_bytes() == (found.base / "config.json").read_bytes()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_ones_are_merged_without_peft(
    make: Make, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make(CASES[name])
    expected, target = found.merged(), packed(found, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with tallstore.open(target) as zoo:
        state = zoo.state_dict("a", merged=True)
    assert same(state, {n: expected[n] for n in state})


def test_what_needs_peft_says_so(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = packed(make(CASES["dora"]), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with tallstore.open(target) as zoo, pytest.raises(tallstore.errors.MissingExtraError, match=r"tallstore\[peft\]"):
        zoo.state_dict("a", merged=True)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_cannot_be_merged(make: Make, tmp_path: Path, name: str) -> None:
    found = make(PROMPTS[name])
    with tallstore.open(packed(found, tmp_path)) as zoo:
        for work in (
            lambda: zoo.state_dict("a", merged=True),
            lambda: zoo.load_into(found.model(), "a"),
            lambda: zoo.export("a", tmp_path / "merged", merged=True),
        ):
            with pytest.raises(OptionError, match="load that with PEFT"):
                work()
    assert not (tmp_path / "merged").exists()


def test_a_peft_model_is_given_the_adapter_itself(make: Make, tmp_path: Path) -> None:
    import peft

    first, second = make(CASES["lora"], 1), make(CASES["lora"], 2)
    target = packed(first, tmp_path, b=second.adapter)
    model = first.adapted()
    with tallstore.open(target) as zoo:
        zoo.load_into(model, "b")
        own = peft.get_peft_model_state_dict(model)
        assert same(own, zoo.state_dict("b"))
        wider = Case(llama, "LoraConfig", {"r": 5, "target_modules": ["q_proj", "down_proj"]})
        other = made(wider, tmp_path / "wider").adapted()
        before = {n: t.clone() for n, t in other.state_dict().items()}
        with pytest.raises(ModelMismatchError, match="lora_A"):
            zoo.load_into(other, "b")
    assert same(before, dict(other.state_dict()))


def test_a_peft_model_in_memory_is_its_active_adapter(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    model = found.adapted()
    tallstore.pack(found.base, {"a": model}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(zoo.state_dict("a"), load_file(found.adapter / "adapter_model.safetensors"))
        expected = found.merged()
        assert same(zoo.state_dict("a", merged=True), expected)


def test_a_switcher_goes_between_models_and_adapters(make: Make, tmp_path: Path) -> None:
    first, second = make(CASES["lora"], 1), make(CASES["dora"], 2)
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in first.model().state_dict().items()}
    model = first.model()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    with tallstore.open(packed(first, tmp_path, b=second.adapter, full=full)) as zoo:
        switcher = zoo.switcher(model)
        for task, expected in (
            ("a", first.merged()),
            ("full", zoo.state_dict("full")),
            ("b", second.merged()),
            (None, base),
        ):
            switcher.switch(task)
            assert same(dict(model.state_dict()), expected), task


def test_tied_weights_stay_tied(make: Make, tmp_path: Path) -> None:
    found = make(CASES["embedding-tied"])
    model = found.model()
    with tallstore.open(packed(found, tmp_path)) as zoo:
        zoo.load_into(model, "a")
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight  # type: ignore[operator]
    assert head is embedding
    assert torch.equal(head, found.merged()["lm_head.weight"])


@pytest.mark.parametrize(
    "name", ["embedding-tied", "tokens-alone-tied", "tokens-of-a-tied-head", "lora-of-a-tied-head"]
)
@pytest.mark.parametrize("storage", ["embed", "bf16", "reference"])
def test_a_base_in_memory_changes_under_both_names(make: Make, tmp_path: Path, name: str, storage: str) -> None:
    found = make(CASES[name])
    base = found.model()
    tallstore.pack(base, {"a": found.adapter}, tmp_path / "zoo.tall", base_storage=storage)
    with tallstore.open(tmp_path / "zoo.tall", base=base if storage == "reference" else None) as zoo:
        state = zoo.state_dict("a", merged=True)
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert storage == "bf16" or same(state, found.merged())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_adapter_is_not_merged_into_the_codes_of_a_quantized_base(
    make: Make, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    found = make(CASES[name])
    weights = load_file(found.base / "model.safetensors")
    save_file({n: t.to(dtype) for n, t in weights.items()}, found.base / "model.safetensors", {"format": "pt"})
    with tallstore.open(packed(found, tmp_path)) as zoo:
        with pytest.raises(OptionError, match=r"cannot be merged: the base's .* codes of a quantized model"):
            zoo.state_dict("a", merged=True)
        zoo.export("a", tmp_path / "out")
    target = tmp_path / "judged.tall"
    report = tallstore.pack(found.base, {"a": found.adapter}, target, evaluate=lambda *_: 1.0)
    assert any("is not scored" in each for each in report.warnings)


def _packed_codes(form: str, module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight as its library packs several codes into an element."""
    rows, columns = weight.shape
    words = torch.zeros(columns // 8, rows, dtype=torch.int32)
    scales = torch.ones(1, rows)
    if form == "gptq":
        return {f"{module}.qweight": words.repeat(8, 1), f"{module}.qzeros": words, f"{module}.scales": scales}
    if form == "compressed-tensors":
        return {f"{module}.weight_packed": words.repeat(8, 1), f"{module}.weight_scale": scales}
    codes = torch.zeros(rows * columns // 2, 1, dtype=torch.uint8)
    return {f"{module}.weight": codes.repeat(2, 1), f"{module}.weight.absmax": scales}


@pytest.mark.parametrize("form", ["gptq", "compressed-tensors", "nf4"])
def test_an_adapter_of_a_base_of_packed_codes_is_kept_and_not_merged(make: Make, tmp_path: Path, form: str) -> None:
    found = make(Case(lambda: llama(width=32), "LoraConfig", {"r": 2, **QUERY}))
    state: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(found.base / "model.safetensors").items():
        packs = name.endswith("proj.weight")
        state |= _packed_codes(form, name.removesuffix(".weight"), tensor) if packs else {name: tensor}
    save_file(state, found.base / "model.safetensors", {"format": "pt"})
    with tallstore.open(packed(found, tmp_path)) as zoo:
        assert load_file(zoo.export("a", tmp_path / "out") / "adapter_model.safetensors").keys()
        with pytest.raises(OptionError, match=r"cannot be merged: the base's .* codes of a quantized model"):
            zoo.state_dict("a", merged=True)
    other = make(Case(lambda: llama(width=32), "LoraConfig", {"r": 2, "target_modules": ["q_proj"]}))
    config = other.adapter / "adapter_model.safetensors"
    save_file({n.replace("q_proj", "x_proj"): t for n, t in load_file(config).items()}, config)
    with pytest.raises(WrongBaseError, match="x_proj"):
        tallstore.pack(found.base, {"a": other.adapter}, tmp_path / "other.tall")


def test_one_memory_changed_twice_is_kept_and_not_merged(make: Make, tmp_path: Path) -> None:
    tokens = {"embed_tokens": [1, 3], "lm_head": [2, 3]}
    found = make(Case(tied_llama, "LoraConfig", {"r": 2, **QUERY, "trainable_token_indices": tokens}))
    with tallstore.open(packed(found, tmp_path)) as zoo:
        with pytest.raises(OptionError, match=r"twice, by the names .*lm_head.* load that with PEFT"):
            zoo.state_dict("a", merged=True)
        zoo.export("a", tmp_path / "out")
    assert same(found.merged(tmp_path / "out"), found.merged())


def test_a_head_that_the_base_does_not_tie_is_not_merged_into_its_embedding(make: Make, tmp_path: Path) -> None:
    found = make(CASES["tokens-of-a-tied-head"])
    config = json.loads((found.base / "config.json").read_text())
    (found.base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with tallstore.open(packed(found, tmp_path)) as zoo, pytest.raises(OptionError, match="does not tie it"):
        zoo.state_dict("a", merged=True)


def test_an_embedding_untied_from_a_head_that_is_not_there_is_not_merged(make: Make, tmp_path: Path) -> None:
    found = make(Case(tied_llama, "LoraConfig", {"r": 2, **QUERY, "modules_to_save": ["embed_tokens"]}))
    expected, model = found.merged(), found.model()
    assert not torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with tallstore.open(packed(found, tmp_path)) as zoo:
        for work in (
            lambda: zoo.state_dict("a", merged=True),
            lambda: zoo.load_into(model, "a"),
            lambda: zoo.export("a", tmp_path / "merged", merged=True),
        ):
            with pytest.raises(OptionError, match=r"unties 'model\.embed_tokens\.weight' .* load that with PEFT"):
                work()
        zoo.export("a", tmp_path / "out")
    assert same(dict(model.state_dict()), before)
    assert not (tmp_path / "merged").exists()
    assert same(found.merged(tmp_path / "out"), expected)


def test_an_adapter_may_bring_the_head_that_its_base_lacks(make: Make, tmp_path: Path) -> None:
    options = {"r": 2, **QUERY, "modules_to_save": ["embed_tokens", "lm_head"]}
    found = make(Case(tied_llama, "LoraConfig", options))
    with tallstore.open(packed(found, tmp_path)) as zoo:
        assert same(zoo.state_dict("a", merged=True), found.merged())


def test_a_task_of_transformers_is_the_merged_model(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    model = tallstore.from_pretrained(packed(found, tmp_path), task="a")
    assert same(dict(model.state_dict()), found.merged())


def test_adapters_are_added_and_removed(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_dropped(monkeypatch)  # so that the version is one that adapters are newer than
    first, second = make(CASES["lora"], 1), make(CASES["lora"], 2)
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in first.model().state_dict().items()}
    target = tmp_path / "zoo.tall"
    tallstore.pack(first.base, {"full": full}, target)
    with tallstore.open(target) as zoo:
        assert zoo.info()["version"] == "1.0"
        before = zoo.state_dict("full")
    report = tallstore.add(target, {"a": first.adapter})
    assert (report.added["a"].adapter, report.added["a"].relative_error) == ("LORA", 0.0)
    tallstore.add(target, {"b": second.adapter})
    tallstore.remove(target, ["a"])
    tallstore.compact(target)
    with tallstore.open(target) as zoo:
        assert zoo.tasks == ("full", "b")
        assert same(zoo.state_dict("full"), before)
        assert same(zoo.state_dict("b"), load_file(second.adapter / "adapter_model.safetensors"))
        assert same(zoo.state_dict("b", merged=True), second.merged())
        assert zoo.verify({"b": second.adapter}).against["b"].exact
        assert zoo.verify().files
    with pytest.raises(WrongBaseError):
        tallstore.add(target, {"c": make_wrong(tmp_path).adapter})


def make_wrong(tmp_path: Path) -> Made:
    """An adapter of a wider model."""
    return made(Case(lambda: llama(width=32), "LoraConfig", {"r": 2, "target_modules": ["q_proj"]}), tmp_path / "wide")


def test_an_adapter_of_another_base_is_refused(make: Make, tmp_path: Path) -> None:
    found, wide = make(CASES["lora"]), make_wrong(tmp_path)
    with pytest.raises(WrongBaseError, match=r"q_proj\.lora_A\.weight.*q_proj\.weight.*\[16, 16\]") as caught:
        tallstore.pack(found.base, {"a": wide.adapter}, tmp_path / "zoo.tall")
    assert str(wide.adapter) in str(caught.value)
    assert str(found.base) in str(caught.value)
    assert not (tmp_path / "zoo.tall").exists()
    tensors = load_file(found.adapter / "adapter_model.safetensors")
    save_file(
        {n.replace("q_proj", "k_projection"): t for n, t in tensors.items()},
        found.adapter / "adapter_model.safetensors",
    )
    with pytest.raises(WrongBaseError, match=r"no module for tensor .*k_projection"):
        tallstore.pack(found.base, {"a": found.adapter}, tmp_path / "zoo.tall")


@pytest.mark.parametrize(
    "options", [{"base_storage": "reference"}, {"groups": 2}, {"recipe": "fit"}, {"max_error": 0.5}]
)
def test_zoos_of_every_kind_take_adapters(make: Make, tmp_path: Path, options: dict[str, object]) -> None:
    first, second = make(CASES["lora"], 1), make(CASES["lora"], 2)
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in first.model().state_dict().items()}
    if options.get("groups"):
        options = {**options, "recipe": "fit"}
    tasks = {"a": first.adapter, "full": full, "b": second.adapter}
    tallstore.pack(first.base, tasks, tmp_path / "zoo.tall", **options)
    base = first.base if options.get("base_storage") else None
    with tallstore.open(tmp_path / "zoo.tall", base=base) as zoo:
        for task, found in (("a", first), ("b", second)):
            assert same(zoo.state_dict(task), load_file(found.adapter / "adapter_model.safetensors"))
            assert same(zoo.state_dict(task, merged=True), found.merged())
        zoo.verify()


def test_an_adapter_costs_the_other_tasks_nothing(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in found.model().state_dict().items()}
    tallstore.pack(found.base, {"full": full}, tmp_path / "alone.tall")
    tallstore.pack(found.base, {"full": full, "a": found.adapter}, tmp_path / "both.tall")
    with tallstore.open(tmp_path / "alone.tall") as alone, tallstore.open(tmp_path / "both.tall") as both:
        assert same(alone.state_dict("full"), both.state_dict("full"))


def test_damage_to_an_adapter_is_found(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    tallstore.pack(found.base, {"a": found.adapter}, tmp_path / "zoo")
    part = tmp_path / "zoo" / "tasks" / "a" / "private.safetensors"
    data = bytearray(part.read_bytes())
    data[-200] ^= 1
    part.write_bytes(data)
    model = found.model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with tallstore.open(tmp_path / "zoo") as zoo:
        for work in (lambda: zoo.state_dict("a"), lambda: zoo.load_into(model, "a"), zoo.verify):
            with pytest.raises(DamagedError, match=r"private\.safetensors"):
                work()
    assert same(before, dict(model.state_dict()))


def test_folders_of_several_adapters(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    outer = tmp_path / "outer"
    for name in ("one", "two"):
        (outer / name).mkdir(parents=True)
        for path in found.adapter.iterdir():
            (outer / name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="one, two"):
        tallstore.pack(found.base, {"a": outer}, tmp_path / "zoo.tall")
    for path in (outer / "two").iterdir():
        path.unlink()
    tallstore.pack(found.base, {"a": outer}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(zoo.state_dict("a", merged=True), found.merged())


def test_state_dicts_and_pickles_of_adapters(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    tensors = load_file(found.adapter / "adapter_model.safetensors")
    (found.adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, found.adapter / "adapter_model.bin")
    report = tallstore.pack(found.base, {"pickled": found.adapter, "bare": tensors}, tmp_path / "zoo.tall")
    assert [task.adapter for task in report.tasks.values()] == ["LORA", "LORA"]
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(zoo.state_dict("bare"), tensors)
        zoo.export("pickled", tmp_path / "out")
        assert same(zoo.state_dict("pickled", merged=True), found.merged(tmp_path / "out"))
        with pytest.raises(OptionError, match=r"adapter_config\.json"):
            zoo.state_dict("bare", merged=True)


def test_a_whole_model_with_an_adapter_in_it_is_a_model(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    state = dict(found.adapted().state_dict())
    report = tallstore.pack(found.base, {"whole": state}, tmp_path / "zoo.tall", allow_distant=True)
    assert report.tasks["whole"].adapter is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"alpha_pattern": {"(a+)+b": 3}}, "too complicated"),
        ({"lora_alpha": "many"}, "not a number"),
        ({"peft_type": "../x"}, "no type of an adapter"),
        ({"peft_type": "XLORA"}, "cannot be merged here"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "megatron_config"),
    ],
)
def test_what_a_configuration_says_is_looked_at(
    make: Make, tmp_path: Path, change: dict[str, object], match: str
) -> None:
    found = make(CASES["lora"])
    config = json.loads((found.adapter / "adapter_config.json").read_text())
    (found.adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))

    def work() -> None:
        with tallstore.open(packed(found, tmp_path)) as zoo:
            zoo.state_dict("a", merged=True)

    with pytest.raises(TallstoreError, match=match):
        work()
    assert "antigravity" not in sys.modules


def test_models_are_no_adapters(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in found.model().state_dict().items()}
    with tallstore.open(packed(found, tmp_path, full=full)) as zoo:
        with pytest.raises(OptionError, match="leave merged out"):
            zoo.state_dict("full", merged=True)
        with pytest.raises(OptionError, match="'a' is an adapter"):
            zoo.merged("arithmetic")
        assert set(zoo.merged("arithmetic", tasks=["full"], alpha=1.0)) == set(full)
        assert {whole.why for whole in zoo.wholes("a").values()} == {"adapter, kept as it is"}
        assert zoo.info()["tasks"]["a"]["adapter"] == "LORA"


def test_the_command_line(make: Make, tmp_path: Path) -> None:
    from tallstore.cli.app import app

    found = make(CASES["lora"])
    target, run = str(tmp_path / "zoo.tall"), CliRunner().invoke
    words = ["pack", str(found.base), f"a={found.adapter}", "-o", target]
    note = ": an adapter (LORA), kept bit for bit"
    for command in (words, ["add", target, f"b={found.adapter}"], ["info", target]):
        done = run(app, command)
        assert done.exit_code == 0, done.output
        assert note in done.output, done.output
    done = run(app, ["extract", target, "a", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    done = run(app, ["extract", target, "a", "--merged", "-o", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert same(load_file(tmp_path / "merged" / "model.safetensors"), found.merged(tmp_path / "out"))
    done = run(app, ["verify", target, "--against", f"a={found.adapter}"])
    assert done.exit_code == 0, done.output


def test_manifests_with_a_bad_mark_are_refused() -> None:
    from tallstore.format.adapter import Adapter

    for value in ({}, {"type": "lora"}, {"type": "LORA", "base_files": "x"}, {"type": "LORA", "base_files": "../"}, []):
        with pytest.raises(FormatError):
            Adapter.from_json(value, "here")
    mark = Adapter(type="LORA", base_files="base_model/")
    assert Adapter.from_json(mark.to_json(), "here") == mark
