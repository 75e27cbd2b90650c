"""Names that differ anywhere find each other; what finds no counterpart is said, and nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support import State, near, noise, packed, same_bits
from torch import nn

import tallstore
from tallstore.errors import CheckpointError, WrongBaseError

PARTS = {"self_attn.q_proj": (48, 48), "self_attn.o_proj": (48, 48), "mlp.up_proj": (64, 48), "mlp.down_proj": (48, 64)}


def language(seed: int = 0) -> State:
    names = [f"model.layers.{i}.{part}.weight" for i in range(3) for part in PARTS]
    state = {n: noise(*PARTS[".".join(n.split(".")[3:5])], seed=seed + at) for at, n in enumerate(names)}
    return state | {f"model.layers.{i}.norm.weight": 1 + 0.1 * noise(48, seed=70 + i) for i in range(3)}


def towers() -> State:
    vision = {f"vision_tower.layers.{i}.fc.weight": noise(64, 48, seed=200 + i) for i in range(3)}
    return {f"language_model.{name}": tensor for name, tensor in language().items()} | vision


def numbered(word: str) -> Callable[[str], str]:
    return lambda name: re.sub(r"(layers\.\d+)", rf"\1.{word}", name)


def replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return rename


SPEECH = {f"layers.{i}.fc.weight": noise(64, 48, seed=i) for i in range(4)} | {
    "pos.conv.weight_g": 1 + noise(1, 1, 300, seed=50).abs(),
    "pos.conv.weight_v": noise(16, 8, 48, seed=51),
}
MOE = {
    f"layers.{i}.mlp.{w}.weight": noise(40, 40, seed=10 * i + at)
    for i in range(3)
    for at, w in enumerate(("a", "b", "c"))
}

WAYS: dict[str, tuple[State, Callable[[str], str]]] = {
    "wrapped blocks": (language(), numbered("_orig_mod")),
    "checkpointed blocks": (language(), numbered("_checkpoint_wrapped_module")),
    "sharded model and blocks": (language(), lambda n: "_fsdp_wrapped_module." + numbered("_fsdp_wrapped_module")(n)),
    "parallel and wrapped": (language(), lambda n: "module._orig_mod." + n),
    "wrapped under another prefix": (language(), lambda n: "net." + numbered("module")(n)),
    "towers moved apart": (
        towers(),
        replaced(("language_model.model.", "model.language_model."), ("vision_tower", "model.visual")),
    ),
    "weight norm": (
        SPEECH,
        replaced(("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")),
    ),
    "renamed modules": (language(), replaced(("self_attn.q_proj", "attention.query"), ("mlp.up_proj", "ffn.w1"))),
    "renamed and of one shape": (MOE, replaced((".a.", ".gate."), (".b.", ".value."), (".c.", ".out."))),
}


@pytest.mark.parametrize("way", WAYS)
def test_names_that_differ_find_each_other_at_no_cost(way: str, tmp_path: Path) -> None:
    base, rename = WAYS[way]
    plain = {name: near(tensor, at) for at, (name, tensor) in enumerate(base.items())}
    task = {rename(name): tensor for name, tensor in plain.items()}
    assert set(task) != set(plain)
    with packed(base, {"t": plain}, tmp_path / "plain.tall") as zoo:
        size = zoo.manifest.tasks["t"].measured["bytes"]
        right = zoo.state_dict("t")
    report = tallstore.pack(base, {"t": task}, tmp_path / "z.tall")
    assert (report.tasks["t"].unmatched, report.warnings) == (0.0, ())
    with tallstore.open(tmp_path / "z.tall") as zoo:
        assert list(zoo.state_dict("t")) == list(task), "a task keeps its names"
        for name in plain:
            assert same_bits(zoo.state_dict("t")[rename(name)], right[name])
        headers = sum(len(name) for name in task)
        assert zoo.manifest.tasks["t"].measured["bytes"] <= 1.02 * size + headers


def test_nothing_is_guessed_among_tensors_of_one_shape(tmp_path: Path) -> None:
    base = {f"a.{i}.weight": noise(40, 40, seed=i) for i in range(4)}
    task = {name: near(tensor, 3) for name, tensor in base.items() if name != "a.3.weight"}
    task["other.weight"] = noise(40, 40, seed=99)
    report = tallstore.pack(base, {"t": task}, tmp_path / "z.tall")
    assert list(report.tasks["t"].private) == ["other.weight"]
    assert report.tasks["t"].unmatched == pytest.approx(0.25)
    (warning,) = report.warnings
    assert "25 %" in warning
    assert "other.weight" in warning
    assert "a.3.weight" in warning
    with tallstore.open(tmp_path / "z.tall") as zoo:
        assert zoo.info()["tasks"]["t"]["unmatched"] == report.tasks["t"].unmatched


def test_the_right_base_is_not_called_wrong(tmp_path: Path) -> None:
    """Most of it has no counterpart (fused here, apart there), and what has one lies close."""
    base = {"embed.weight": noise(64, 40, seed=1)} | {
        f"l.{i}.{w}.weight": noise(40, 40, seed=i) for i in range(9) for w in "qkv"
    }
    task = {"embed.weight": near(base["embed.weight"], 2)} | {
        f"l.{i}.qkv.weight": noise(120, 40, seed=40 + i) for i in range(9)
    }
    report = tallstore.pack(base, {"t": task}, tmp_path / "z.tall")
    assert report.tasks["t"].unmatched > 0.9
    assert "find no counterpart" in report.warnings[0]


def test_an_unrelated_model_is_still_refused(tmp_path: Path) -> None:
    base = {f"l.{i}.weight": noise(40, 40, seed=i) for i in range(4)}
    task = {f"k.{i}.kernel": noise(40, 40, seed=50 + i) for i in range(4)}
    with pytest.raises(WrongBaseError, match=r"k\.0\.kernel"):
        tallstore.pack(base, {"t": task}, tmp_path / "z.tall")
    assert not (tmp_path / "z.tall").exists()


def test_what_began_at_zero_does_not_make_a_base_the_wrong_one(tmp_path: Path) -> None:
    """Position tables and the last layers of blocks begin as zeros, and anything is far away from these."""
    base = {"table": torch.zeros(64, 64), "w": noise(40, 40, seed=1), "v": noise(40, 40, seed=2)}
    task = {"table": noise(64, 64, seed=3), "w": near(base["w"], 4), "v": near(base["v"], 5)}
    with packed(base, {"t": task}, tmp_path / "z.tall", quality="lossless") as zoo:
        assert all(same_bits(tensor, task[name]) for name, tensor in zoo.state_dict("t").items())
    with pytest.raises(WrongBaseError, match=r"tensor '[vw]'"):
        tallstore.pack(
            base, {"t": {**task, "w": noise(40, 40, seed=6), "v": noise(40, 40, seed=7)}}, tmp_path / "y.tall"
        )


def test_two_names_of_one_base_tensor_are_refused_by_name(tmp_path: Path) -> None:
    base = {"w.weight": noise(40, 40, seed=1)}
    task = {"w.weight": near(base["w.weight"], 2), "module.w.weight": near(base["w.weight"], 3)}
    with pytest.raises(CheckpointError, match=r"'w\.weight' and 'module\.w\.weight' are both 'w\.weight' of base"):
        tallstore.pack(base, {"t": task}, tmp_path / "z.tall")
    assert not (tmp_path / "z.tall").exists()


class Block(nn.Module):
    """Something to wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)


def wraps() -> dict[str, Callable[[nn.Sequential], nn.Module]]:
    def each(model: nn.Sequential) -> nn.Module:
        return nn.Sequential(*(torch.compile(block, backend="eager") for block in model))

    return {
        "plain": lambda m: m,
        "parallel": nn.DataParallel,
        "compiled": partial(torch.compile, backend="eager"),
        "compiled blocks": each,
    }


@pytest.mark.parametrize("packed_as", wraps())
@pytest.mark.parametrize("loaded_as", wraps())
def test_what_packing_takes_loading_takes(packed_as: str, loaded_as: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Block(), Block())
    base = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    task = {n: near(t, 5) for n, t in wraps()[packed_as](plain).state_dict().items()}
    with packed(base, {"t": task}, tmp_path / "z.tall") as zoo:
        right = list(zoo.state_dict("t").values())
        for write in (lambda m: zoo.load_into(m, "t"), lambda m: zoo.switcher(m).switch("t")):
            model = nn.Sequential(Block(), Block())
            write(wraps()[loaded_as](model))
            assert all(same_bits(a, b) for a, b in zip(model.state_dict().values(), right, strict=True))


def test_a_prefix_is_taken_when_loading(tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in Block().state_dict().items()}
    task = {f"net.body.{name}": near(tensor, 5) for name, tensor in base.items()}
    with packed(base, {"t": task}, tmp_path / "z.tall") as zoo:
        zoo.load_into(model := Block(), "t")
        assert same_bits(model.fc.weight.detach(), zoo.state_dict("t")["net.body.fc.weight"])
