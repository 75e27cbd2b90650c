"""Quantized checkpoints: codes and scales come back bit for bit, take little beside their base, and it is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forms import FORMS, made
from safetensors.torch import save_file
from support import State, assert_same, kinds, noise, packed, same_bits, tiny_zoo
from typer.testing import CliRunner

import tallstore
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.quantized import find_quantized
from tallstore.cli.app import app
from tallstore.errors import CheckpointError, OptionError
from tallstore.zoo import Zoo

EXACT = {"base", "lossless", "private"}


@contextmanager
def zoo_of(form: str, target: Path, **options: object) -> Iterator[tuple[Zoo, dict[str, State], set[str]]]:
    states = {name: made(form, seed) for seed, name in enumerate(("base", "a", "b"))}
    whole = {name: quantized | floats for name, (quantized, floats) in states.items()}
    base = whole.pop("base")
    with packed(base, whole, target, **options) as zoo:
        yield zoo, whole, set(states["a"][0])


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_scales_come_back_bit_for_bit(form: str, target: Path) -> None:
    with zoo_of(form, target) as (zoo, tasks, quantized):
        zoo.verify(dict(tasks))
        for task, state in tasks.items():
            found = zoo.state_dict(task)
            assert list(found) == list(state)
            for name in quantized:
                assert same_bits(found[name], state[name]), name
                assert kinds(zoo, task)[name] in EXACT, name
                assert same_bits(zoo.weights(task).get_slice(name)[...], state[name]), name


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_said(form: str, target: Path) -> None:
    states = {name: made(form, seed) for seed, name in enumerate(("base", "a"))}
    base, task = ({**quantized, **floats} for quantized, floats in states.values())
    report = tallstore.pack(base, {"a": task}, target)
    told = report.tasks["a"].without_loss
    assert told is not None
    assert told.form == FORMS[form][0]
    assert told.tensors == len([n for n in states["a"][0] if form != "fp8" or n.endswith("weight")])
    assert told.bytes == sum(t.nbytes for t in states["a"][0].values())
    assert told.coded_bytes < 0.5 * told.bytes
    assert report.warnings == ()
    note = report.notes[0]
    assert note.startswith(f"a: {told.tensors} tensors of ")
    assert "without loss" in note
    assert all("bit for bit, since that is cheaper" in other for other in report.notes[1:]), "of the floats beside them"
    assert report.to_json()["notes"] == list(report.notes)
    with tallstore.open(target) as zoo:
        assert zoo.manifest.tasks["a"].measured["without_loss"]["coded_bytes"] == told.coded_bytes
    shown = CliRunner().invoke(app, ["info", str(target)], env={"COLUMNS": "200"})
    assert note in " ".join(shown.output.split())


@pytest.mark.parametrize("recipe", ["fit", "tall", "solo"])
@pytest.mark.parametrize("form", ["gptq", "mxfp4"])
def test_every_recipe_leaves_codes_alone(form: str, recipe: str, target: Path) -> None:
    with zoo_of(form, target, recipe=recipe, base_storage="bf16") as (zoo, tasks, quantized):
        for task, state in tasks.items():
            assert all(same_bits(zoo.state_dict(task)[name], state[name]) for name in quantized)


@pytest.mark.parametrize("quality", ["small", "lossless"])
def test_referenced_base(quality: str, target: Path) -> None:
    base, task = ({**q, **f} for q, f in (made("deepseek", seed) for seed in (0, 1)))
    tallstore.pack(base, {"a": task}, target, base_storage="reference", quality=quality)
    with tallstore.open(target) as zoo:
        zoo.verify()
    with tallstore.open(target, base=base) as zoo:
        found = zoo.state_dict("a")
        if quality == "lossless":
            assert_same(found, task)
        assert all(same_bits(found[name], task[name]) for name in made("deepseek", 1)[0])


def test_archives_that_grow_shrink_and_are_cut(target: Path, tmp_path: Path) -> None:
    states = {name: made("nf4", seed) for seed, name in enumerate(("base", "a", "b", "c"))}
    whole = {name: {**quantized, **floats} for name, (quantized, floats) in states.items()}
    tallstore.pack(whole["base"], {"a": whole["a"], "b": whole["b"]}, target)
    tallstore.add(target, {"c": whole["c"]})
    tallstore.remove(target, ["a"])
    tallstore.compact(target)
    with tallstore.open(target) as zoo:
        zoo.verify()
        assert zoo.manifest.tasks["c"].measured["without_loss"]["form"] == "bitsandbytes nf4"
        for task in ("b", "c"):
            found = zoo.state_dict(task)
            assert all(same_bits(found[name], tensor) for name, tensor in states[task][0].items())


def test_codes_are_not_merged(target: Path) -> None:
    with zoo_of("gptq", target) as (zoo, _, _), pytest.raises(OptionError, match=r"task 'a' is quantized \(GPTQ"):
        zoo.merged("mean")
    assert zoo.tasks == ("a", "b")


def test_switching_and_loading(target: Path) -> None:
    with zoo_of("int8", target) as (zoo, tasks, quantized):
        model = torch.nn.Module()
        for name, tensor in tasks["a"].items():
            model.register_buffer(name.replace(".", "_"), torch.zeros_like(tensor))
        state = {name.replace(".", "_"): name for name in tasks["a"]}
        renamed = {task: {n.replace(".", "_"): t for n, t in held.items()} for task, held in tasks.items()}
        base = {name.replace(".", "_"): zoo.base(name) for name in tasks["a"]}
    with packed(base, renamed, target.with_name(f"flat-{target.name}")) as flat:
        flat.load_into(model, "a")
        assert all(same_bits(model.state_dict()[n], renamed["a"][n]) for n in renamed["a"] if state[n] in quantized)
        switcher = flat.switcher(model, ["a", "b"])
        for task in ("b", "a"):
            switcher.switch(task)
            held = model.state_dict()
            assert all(same_bits(held[n], renamed[task][n]) for n in renamed[task] if state[n] in quantized)


def test_a_base_that_is_not_quantized(target: Path) -> None:
    base = {"q.weight": noise(128, 256, size=0.02), "embed.weight": noise(300, 64)}
    task = {"q.weight": (base["q.weight"] * 100).to(torch.float8_e4m3fn), "q.weight_scale": torch.ones(1)}
    report = tallstore.pack(base, {"a": task | {"embed.weight": base["embed.weight"]}}, target)
    assert any("give the base quantized in the same way" in warning for warning in report.warnings)


def test_configuration_tells_what_it_is_called(tmp_path: Path) -> None:
    configs = {
        "gptq int4": {"quant_method": "gptq", "bits": 4},
        "compressed-tensors int4": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        },
        "bitsandbytes nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "torchao Int8WeightOnlyConfig": {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}},
        },
        "GPTQ or AWQ": {"quant_method": 3},
    }
    for number, (called, config) in enumerate(configs.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        quantized, floats = made("gptq", 0)
        save_file({**quantized, **floats}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
        from tallstore.checkpoints import open_checkpoint

        checkpoint = open_checkpoint(folder)
        found = find_quantized(checkpoint)
        checkpoint.close()
        assert found is not None
        assert found.form == called
        assert found.tensors == set(quantized)


@pytest.mark.parametrize(
    "state",
    [
        {"a.logit_scale": torch.ones(4), "a.relative_position_index": torch.zeros(64, 64, dtype=torch.int64)},
        {"logit_scale": torch.ones(1), "text.embeddings.position_ids": torch.zeros(1, 512, dtype=torch.int64)},
        {"a.weight": torch.zeros(64, 64), "a.scale": torch.zeros(64)},
        {"scale": torch.ones(3), "a.b.buffer": torch.zeros(512, dtype=torch.int32)},
        tiny_zoo(1)[0],
    ],
)
def test_what_only_looks_like_it(state: State) -> None:
    assert find_quantized(MemoryCheckpoint(state, "here")) is None


def test_gguf_is_refused_with_the_way_to_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"m.gguf: a GGUF file.*gguf_file='m.gguf'"):
        tallstore.pack(tmp_path / "m.gguf", {"a": tmp_path / "m.gguf"}, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
