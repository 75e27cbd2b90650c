"""How a model of many tasks is called: by threads, with wrong names, on another base; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from multitask_models import BERT, bert, llama, near_enough, own_logits, tokens, tuned
from support import near
from torch import Tensor, nn

import tallstore
from tallstore.errors import ModelChangedError, ModelMismatchError, NoSuchTaskError, OptionError

transformers = pytest.importorskip("transformers")


def test_threads_and_calls_have_rows_of_their_own(zoo: tallstore.Zoo) -> None:
    from concurrent.futures import ThreadPoolExecutor

    multi = zoo.multitask(bert())
    ids = tokens(2)
    wanted = {names: multi(input_ids=ids, tasks=names).logits for names in (("a", "b"), ("c", "c"), ("b", "a"))}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda names: (names, multi(input_ids=ids, tasks=names).logits), list(wanted) * 4))
    assert all(torch.equal(logits, wanted[names]) for names, logits in found)
    with multi.using(["a", "b"]) as inner:
        assert torch.equal(inner(input_ids=ids).logits, wanted["a", "b"])
    assert multi.tasks == ("a", "b", "c")
    assert multi.model.state_dict().keys() == bert().state_dict().keys()
    assert isinstance(multi.model.bert.pooler.dense, nn.Linear)


@pytest.mark.parametrize("kind", ["default", "small", "without loss"])
def test_what_stays_packed_is_small(kind: str, packed_llama: Callable[[str, torch.dtype], Path]) -> None:
    """Beside the model about what the archive has of the tasks, however often it is used."""
    path = packed_llama(kind, torch.bfloat16)
    with tallstore.open(path) as zoo:
        model = llama(torch.bfloat16)
        multi = zoo.multitask(model, decoded_bytes=20_000)
        small = sum(t.numel() * t.element_size() for t in model.parameters() if t.dim() < 2 or t.numel() <= 4096)
        before = multi.resident_bytes
        assert before < 2 * zoo.info()["bytes"]["masks"] + 6 * small
        for _ in range(3):
            multi(input_ids=tokens(3), tasks=["a", "b", "c"])
        norms = 5 * 64 * 2  # of the base, beside those of tasks: they are looked up together
        assert multi.resident_bytes <= before + 20_000 + norms


def test_what_a_task_lacks_is_the_bases(tmp_path: Path) -> None:
    """Not what the model happens to hold there."""
    net = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64, bias=False))
    base = {name: near(each.detach(), seed) for seed, (name, each) in enumerate(net.state_dict().items())}
    part = {name: near(base[name], 9) for name in ("0.weight", "0.bias")}
    tallstore.pack(base, {"part": part}, tmp_path / "zoo.tall", quality="lossless")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        net.load_state_dict({**base, "1.weight": near(base["1.weight"], 8)})
        with pytest.raises(ModelMismatchError, match=r"the model's '1\.weight' is not the base's '1\.weight'"):
            zoo.multitask(net, ["part"])
        x = torch.ones(1, 64)
        wanted = (x @ part["0.weight"].T + part["0.bias"]) @ base["1.weight"].T
        assert near_enough(zoo.multitask(net, ["part"], write_base=True)(x, tasks=["part"]), wanted)


def test_wrong_names_are_one_error_each(zoo: tallstore.Zoo) -> None:
    model = bert()
    multi = zoo.multitask(model, ["a", "b"])
    with pytest.raises(NoSuchTaskError, match="no task 'c'; it has a, b"):
        multi(input_ids=tokens(1), tasks=["c"])
    with pytest.raises(OptionError, match="2 tasks are named, the batch has 3 rows"):
        multi(input_ids=tokens(3), tasks=["a", "b"])
    with pytest.raises(OptionError, match="expected one name for each row"):
        multi(input_ids=tokens(1), tasks="a")
    with pytest.raises(OptionError, match="which task is each row"):
        multi.model(input_ids=tokens(1))
    with pytest.raises(NoSuchTaskError, match="no task 'd'"):
        zoo.multitask(model, ["d"])
    with multi.using(["a", "b"]) as inner, pytest.raises(ModelMismatchError, match="sees 3 rows, and 2 tasks"):
        inner(input_ids=tokens(3))
    with pytest.raises(OptionError, match="decoded_bytes -1"):
        zoo.multitask(model, decoded_bytes=-1)
    multi(input_ids=tokens(1), tasks=["a"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.int16])
def test_tables_are_looked_up_by_what_torch_takes_alone(dtype: torch.dtype, zoo: tallstore.Zoo) -> None:
    """A kernel that took memory of another type for int64 would read behind its end."""
    multi, ids, names = zoo.multitask(bert()), tokens(2), ["a", "b"]
    if dtype is torch.int32:
        wanted = multi(input_ids=ids, tasks=names).logits
        assert torch.equal(multi(input_ids=ids.to(dtype), tasks=names).logits, wanted)
    else:
        with pytest.raises(OptionError, match=r"word_embeddings' is looked up by torch\..*: expected int64 or int32"):
            multi(input_ids=ids.to(dtype), tasks=names)


def test_another_base_is_refused_and_the_model_is_as_it_was(zoo: tallstore.Zoo) -> None:
    model = tuned(bert, 7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelMismatchError, match=r"is not the base's .* write_base=True"):
        zoo.multitask(model)
    other = transformers.BertForSequenceClassification(transformers.BertConfig(**{**BERT, "hidden_size": 32}))
    with pytest.raises(ModelMismatchError, match="does not fit the model"):
        zoo.multitask(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    multi = zoo.multitask(model, write_base=True)
    assert torch.equal(model.bert.pooler.dense.weight, bert().bert.pooler.dense.weight)
    wanted = own_logits(zoo, "a", bert, input_ids=tokens(1))
    assert near_enough(multi(input_ids=tokens(1), tasks=["a"]).logits[:, :2], wanted)


def test_a_base_that_was_changed_is_noticed(zoo: tallstore.Zoo) -> None:
    model = bert()
    multi = zoo.multitask(model)
    zoo.load_into(model, "a")
    with pytest.raises(ModelChangedError, match="was changed since the tasks were prepared"):
        multi(input_ids=tokens(1), tasks=["a"])


def test_models_without_rows_first_are_refused(zoo: tallstore.Zoo, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(96, 64), nn.MultiheadAttention(64, 2))
    tallstore.pack(model.state_dict(), {"a": tuned(lambda: model, 1).state_dict()}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as other, pytest.raises(ModelMismatchError, match="rows second"):
        other.multitask(model)


class Places(nn.Module):
    """A table that is looked up by pairs of places, in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(16, 8), nn.Linear(8, 128)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        return self.out(x[:, :, None] + self.table(places[:, None] - places + 8))


class Tied(nn.Module):
    """A head that is the table itself, not called."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(96, 64), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        assert self.table.weight.dtype == torch.float32  # what a tensor is may be asked
        return self.norm(self.table(x)) @ self.table.weight.T


@pytest.mark.parametrize(
    ("kind", "message"), [(Places, "by pairs of places"), (Tied, "computes with its 'table.weight' outside")]
)
def test_what_rows_cannot_be_told_apart_in_is_refused(kind: type[nn.Module], message: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = kind()
    tasks = {}
    for n, name in enumerate("ab", 1):
        tasks[name] = {key: near(tensor, seed=10 * n, size=0.1) for key, tensor in base.state_dict().items()}
    tallstore.pack(base.state_dict(), tasks, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        multi = zoo.multitask(base)
        x = torch.randn(2, 4, 8) if kind is Places else tokens(2)
        for _ in range(2):
            with pytest.raises(ModelMismatchError, match=message):
                multi(x, tasks=["a", "b"])
