"""One model, several tasks: switching and loading in place give the bits of `state_dict`, and all or nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import FLOATS, near, nothing_dropped
from torch import Tensor, nn

import tallstore
from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.errors import DamagedError, ModelChangedError, ModelMismatchError, NoSuchTaskError

RECIPES = [
    {},
    {"quality": "high"},
    {"recipe": "fit"},
    {"recipe": "tall", "vector": "f32"},
    {"recipe": "emr"},
    {"bits": 3.0},
]


class Net(nn.Module):
    """A body that tasks share, tied weights, a buffer, and a head of some width."""

    def __init__(self, classes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(70, 48)
            self.body = nn.Linear(48, 48)
            self.out = nn.Linear(48, 70, bias=False)
            self.out.weight = self.embed.weight
            self.norm = nn.BatchNorm1d(48)
            self.head = nn.Linear(48, classes)
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.body(self.embed(tokens)).mean(1))))


def tuned(base: Net, classes: int, seed: int, dtype: torch.dtype) -> Net:
    net = Net(classes, seed, dtype)
    with torch.no_grad():
        for n, (name, tensor) in enumerate(net.named_parameters()):
            if not name.startswith("head"):
                tensor.copy_(near(base.get_parameter(name).detach(), seed=100 * seed + n))
        net.norm.running_mean.copy_(torch.randn(48, generator=torch.Generator().manual_seed(seed)))
    return net


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        a.dtype == right[n].dtype and torch.equal(_bits(a), _bits(right[n])) for n, a in left.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def pack(path: Path, dtype: torch.dtype = torch.float32, classes: Sequence[int] = (3, 5, 3), **options: object) -> None:
    base = Net(2, dtype=dtype)
    tallstore.pack(base, {f"t{n}": tuned(base, c, n + 1, dtype) for n, c in enumerate(classes)}, path, **options)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[tallstore.Zoo]:
    pack(tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as found:
        yield found


@pytest.mark.parametrize("options", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_switching_gives_every_task_bit_for_bit_and_back(dtype: torch.dtype, options: dict, tmp_path: Path) -> None:
    pack(tmp_path / "z", dtype, **options)
    model = Net(2, seed=9, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with tallstore.open(tmp_path / "z") as zoo:
        switcher = zoo.switcher(model)
        assert same(model.state_dict(), before)
        for task in ("t0", "t1", "t0", "t2", "t1"):
            switcher.switch(task)
            assert switcher.task == task
            assert same(model.state_dict(), zoo.state_dict(task))
        switcher.switch(None)
        base = Net(2, dtype=dtype).state_dict()
        heads = {name: before[name] for name in ("head.weight", "head.bias")}
        assert same(model.state_dict(), {**base, **heads})
    assert all(model.get_parameter(name) is tensor for name, tensor in parameters.items())
    assert model.out.weight is model.embed.weight


@pytest.mark.parametrize("options", RECIPES, ids=str)
@pytest.mark.parametrize("base_codec", ["raw", "planes+zstd"])
def test_loading_in_place_is_loading(options: dict, base_codec: str, tmp_path: Path) -> None:
    pack(tmp_path / "z", base_codec=base_codec, **options)
    with tallstore.open(tmp_path / "z") as zoo:
        model = Net(5, seed=9)
        version = model.body.weight._version
        zoo.load_into(model, "t1")
        assert same(model.state_dict(), zoo.state_dict("t1"))
        assert model.body.weight._version > version
        half = Net(5, seed=9, dtype=torch.bfloat16)
        zoo.load_into(half, "t1")
        assert same(half.state_dict(), {n: t.to(half.state_dict()[n].dtype) for n, t in zoo.state_dict("t1").items()})


def test_a_model_in_another_type_follows(zoo: tallstore.Zoo) -> None:
    model = Net(3, seed=9, dtype=torch.bfloat16)
    switcher = zoo.switcher(model, ["t0", "t2"])
    for task in ("t2", "t0"):
        switcher.switch(task)
        expected = {n: t.to(model.state_dict()[n].dtype) for n, t in zoo.state_dict(task).items()}
        assert same(model.state_dict(), expected)


def test_outputs_follow_under_inference_mode(zoo: tallstore.Zoo) -> None:
    with torch.inference_mode():
        inside = Net(3).eval()
    tokens = torch.arange(12).reshape(2, 6)
    for model in (Net(3).eval(), inside):
        switcher = zoo.switcher(model)
        outputs = {}
        for task in ("t0", "t1", "t0"):
            with torch.inference_mode():
                switcher.switch(task)
                outputs.setdefault(task, []).append(model(tokens))
        assert torch.equal(*outputs["t0"])
        assert outputs["t1"][0].shape == (2, 5)
        expected = Net(5).eval()
        expected.load_state_dict(zoo.state_dict("t1"))
        assert torch.equal(outputs["t1"][0], expected(tokens))


def test_autograd_hears_of_it(zoo: tallstore.Zoo) -> None:
    model = Net(3)
    switcher = zoo.switcher(model)
    switcher.switch("t0")
    loss = model(torch.arange(12).reshape(2, 6)).square().sum()
    switcher.switch("t2", force=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_changed_model_is_left_alone(zoo: tallstore.Zoo) -> None:
    model = Net(3).eval()
    switcher = zoo.switcher(model)
    switcher.switch("t0")
    with torch.no_grad():
        model.body.weight.add_(1)
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelChangedError, match=r"'body.weight' was written to .*force=True"):
        switcher.switch("t1")
    assert same(model.state_dict(), changed)
    switcher.switch("t1", force=True)
    assert same(model.state_dict(), zoo.state_dict("t1"))
    model.body.weight = nn.Parameter(torch.zeros(48, 48))
    with pytest.raises(ModelChangedError, match=r"'body.weight' was replaced .*new switcher"):
        switcher.switch("t0", force=True)
    model.to(torch.float64)
    with pytest.raises(ModelChangedError, match=r"moved or converted|replaced"):
        switcher.switch("t0")


def test_what_does_not_fit_is_named_and_nothing_is_written(zoo: tallstore.Zoo) -> None:
    wide = Net(3)
    wide.body = nn.Linear(48, 50)
    less = Net(3)
    del less.norm
    for model, message in (
        (wide, r"another shape: 'body.weight' \(model \[50, 48\], task \[48, 48\]\)"),
        (less, "lacks 'norm"),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for write in (zoo.switcher, lambda m: zoo.load_into(m, "t0")):
            with pytest.raises(ModelMismatchError, match=message):
                write(model)
        assert same(model.state_dict(), before)
    with pytest.raises(ModelMismatchError, match="head"):
        zoo.load_into(Net(4), "t0")
    switcher = zoo.switcher(Net(3), ["t0"])
    with pytest.raises(NoSuchTaskError, match="has no task 't1'"):
        switcher.switch("t1")
    with pytest.raises(NoSuchTaskError):
        zoo.switcher(Net(3), ["nobody"])


@pytest.mark.parametrize("base_codec", ["raw", "planes+zstd"])
@pytest.mark.parametrize("part", ["base/base.safetensors", "tasks/t0/mask.safetensors", "tasks/t0/private.safetensors"])
def test_a_damaged_archive_writes_nothing_into_a_model(part: str, base_codec: str, tmp_path: Path) -> None:
    pack(tmp_path / "z", base_codec=base_codec)
    file = tmp_path / "z" / part
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    size = file.stat().st_size
    model = Net(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused = 0
    for at in range(header, size, max(1, (size - header) // 37)):
        damaged = bytearray(file.read_bytes())
        damaged[at] ^= 0x10
        whole = file.read_bytes()
        file.write_bytes(damaged)
        try:
            with tallstore.open(tmp_path / "z") as zoo:
                for write in (lambda m, z=zoo: z.load_into(m, "t0"), lambda m, z=zoo: z.switcher(m, ["t0"])):
                    try:
                        write(model)
                    except DamagedError:
                        refused += 1
                        assert same(model.state_dict(), before)
                    else:
                        model.load_state_dict(before)
        finally:
            file.write_bytes(whole)
    assert refused > 20


@pytest.mark.parametrize("dropped", [False, True])
def test_an_interruption_puts_the_model_back(dropped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what is held is masks, or what the base's elements are turned into the task's by."""
    held: type[PackedTensor | CodedConditional] = CodedConditional if dropped else PackedTensor
    if not dropped:
        nothing_dropped(monkeypatch)
    pack(tmp_path / "z.tall", torch.bfloat16 if dropped else torch.float32)
    with tallstore.open(tmp_path / "z.tall") as zoo:
        _check_interruption(zoo, Net(3, dtype=zoo.base("body.weight").dtype), held, monkeypatch)


def _check_interruption(
    zoo: tallstore.Zoo,
    model: Net,
    held: type[PackedTensor | CodedConditional],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switcher = zoo.switcher(model)
    switcher.switch("t0")
    whole, calls = held.apply, 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        whole(self, *arguments)

    monkeypatch.setattr(held, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switcher.switch("t2")
    assert switcher.task == "t0"
    assert same(model.state_dict(), zoo.state_dict("t0"))
    switcher.switch("t2")
    assert same(model.state_dict(), zoo.state_dict("t2"))


def test_what_is_held_is_a_base_and_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_dropped(monkeypatch)
    base = {"w": torch.randn(1024, 1024)}
    tasks = {f"t{n}": {"w": near(base["w"], seed=n, size=1e-3)} for n in range(3)}
    tallstore.pack(base, tasks, tmp_path / "z", bits=0.4)
    model = nn.Linear(1024, 1024, bias=False)
    model.w = model.weight
    del model.weight
    with tallstore.open(tmp_path / "z") as zoo:
        held = zoo.switcher(model).resident_bytes
    assert 4 * 2**20 + 3 * 2**18 <= held <= 4 * 2**20 + 3 * 2**18 + 1000
