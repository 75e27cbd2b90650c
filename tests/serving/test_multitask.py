"""Rows of many tasks in one batch give what each task's own model gives, for every way that tasks are packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from multitask_models import CLASSES, KINDS, bert, llama, near_enough, own_logits, states, tokens, tuned
from support import noise, without_kernels
from torch import Tensor, nn

import tallstore
from tallstore.kernels import products

transformers = pytest.importorskip("transformers")


def check_bert(zoo: tallstore.Zoo) -> None:
    model = bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    multi = zoo.multitask(model)
    names = ["b", "a", "c", "b", None, "a", "a"]
    ids, mask = tokens(len(names)), torch.ones(len(names), 9, dtype=torch.long)
    mask[2, 5:] = 0
    logits = multi(input_ids=ids, attention_mask=mask, tasks=names).logits
    assert logits.shape == (len(names), 5)
    for row, name in enumerate(names):
        inputs = {"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1]}
        with torch.no_grad():
            wanted = model(**inputs).logits if name is None else own_logits(zoo, name, bert, CLASSES[name], **inputs)
        own = wanted.shape[1]
        assert near_enough(logits[row, :own], wanted[0])
        assert (logits[row, own:] == -torch.inf).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_its_task_s(kind: str, packed_bert: Callable[[str], Path]) -> None:
    with tallstore.open(packed_bert(kind)) as zoo:
        check_bert(zoo)


@pytest.mark.parametrize("kind", ["default", "shared", "without loss"])
def test_so_it_is_by_the_reference(
    kind: str, packed_bert: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels(monkeypatch)
    with tallstore.open(packed_bert(kind)) as zoo:
        check_bert(zoo)


@pytest.mark.parametrize("way", ["marks", "rows", "whole"])
@pytest.mark.parametrize("kind", ["default", "shared", "without loss"])
def test_every_way_of_a_layer_is_the_task_s(
    way: str, kind: str, packed_bert: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From marks, by rows that are made and multiplied, and decoded first: which is quickest depends on the tokens."""
    from tallstore.serving import linear

    monkeypatch.setattr(linear, "COPY", -1e9 if way == "rows" else 1e9)
    monkeypatch.setattr(linear, "WRITE", -1e9 if way == "whole" else 1e9)
    with tallstore.open(packed_bert(kind)) as zoo:
        check_bert(zoo)


@pytest.mark.parametrize("kind", ["default", "shared q8", "without loss"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_so_it_is_on_other_devices(
    backend: str, kind: str, packed_bert: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ways of computing, on the processor: Triton's kernels are interpreted."""
    if backend == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("kernels are compiled: they take no memory of the processor")
    monkeypatch.setattr(products, "backend_of", lambda _: backend)
    with tallstore.open(packed_bert(kind)) as found:
        check_bert(found)


def test_tasks_with_many_rows_are_computed_by_themselves(zoo: tallstore.Zoo) -> None:
    multi = zoo.multitask(bert())
    names = ["a", "b", "a", "c"] * 40
    ids = tokens(len(names), 20)
    with multi.using(names) as inner:
        wanted = inner(input_ids=ids)
    found = multi(input_ids=ids, attention_mask=torch.ones_like(ids), tasks=names)
    assert type(found) is type(wanted)
    classes = torch.tensor([CLASSES[name] for name in names])[:, None] > torch.arange(5)
    assert (found.logits[~classes] == -torch.inf).all()
    assert near_enough(found.logits[classes], wanted.logits[classes])


@pytest.mark.parametrize(("kind", "beams"), [*((kind, 1) for kind in KINDS if kind != "raw"), ("default", 3)])
def test_generated_tokens_are_each_task_s(
    kind: str, beams: int, packed_llama: Callable[[str, torch.dtype], Path]
) -> None:
    """bfloat16 in the archive, a model of float32: elements are rounded as the task's are."""
    names = ["c", "a", "b", "a"]
    ids = tokens(len(names), 6)
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    with tallstore.open(packed_llama(kind, torch.bfloat16)) as zoo:
        model = llama()
        multi = zoo.multitask(model, write_base=True)
        found = multi.generate(ids, attention_mask=torch.ones_like(ids), tasks=names, **options)
        for row, name in enumerate(names):
            zoo.load_into(model, name)
            own = ids[row : row + 1]
            wanted = model.generate(own, attention_mask=torch.ones_like(own), **options)
            assert found[row].tolist() == wanted[0].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_other_types(dtype: torch.dtype, packed_llama: Callable[[str, torch.dtype], Path]) -> None:
    ids = tokens(3, 6)
    with tallstore.open(packed_llama("default", dtype)) as zoo:
        logits = zoo.multitask(llama(dtype))(input_ids=ids, tasks=["a", "b", "a"]).logits
        for row, name in enumerate(["a", "b", "a"]):
            wanted = own_logits(zoo, name, lambda: llama(dtype), input_ids=ids[row : row + 1])
            limit = {torch.float64: 1e-10, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
            assert float((logits[row] - wanted[0]).abs().max()) <= limit * float(wanted.abs().max())


def test_other_layers_follow_by_row(tmp_path: Path) -> None:
    """Convolutions, class tokens and positions that are a module's own, norms."""
    config = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, image_size=16, patch_size=4
    )

    def vit() -> nn.Module:
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval()

    tasks = {name: tuned(vit, n) for n, name in enumerate("ab", 1)}
    tallstore.pack(vit().state_dict(), states(tasks), tmp_path / "z.tall")
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with tallstore.open(tmp_path / "z.tall") as zoo:
        logits = zoo.multitask(vit())(pixel_values=pixels, tasks=["b", "a", "b", "a"]).logits
        for row, name in enumerate("baba"):
            wanted = own_logits(zoo, name, vit, pixel_values=pixels[row : row + 1])
            assert near_enough(logits[row], wanted[0])


class Mixed(nn.Module):
    """A convolution, batch norm, attention whose parts are read and not called, a layer with weight norm, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(96, 80)
        self.near = nn.Conv1d(80, 80, 3, padding=1, stride=2)
        self.attention = nn.MultiheadAttention(80, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(80, 72))
        self.norm = nn.BatchNorm1d(72)
        self.shift = nn.Parameter(torch.randn(72))
        self.out = nn.Linear(72, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.near(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.out(self.norm(self.normed(x).mean(1)))


def test_modules_of_any_other_kind(tmp_path: Path) -> None:
    def made() -> Mixed:
        return Mixed().eval()

    tasks = {name: tuned(made, n) for n, name in enumerate("ab", 1)}
    for n, task in enumerate(tasks.values()):
        task.norm.running_mean.copy_(torch.randn(72, generator=torch.Generator().manual_seed(n)))
    tallstore.pack(made().state_dict(), states(tasks), tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        found = zoo.multitask(made())(tokens(3), tasks=["a", "b", "a"])
        for row, name in enumerate("aba"):
            model = made()
            zoo.load_into(model, name)
            with torch.no_grad():
                assert near_enough(found[row], model(tokens(3)[row : row + 1])[0])


def test_tasks_that_hold_some_tensors_only(tmp_path: Path) -> None:
    base = bert().state_dict()
    some = {n: t for n, t in tuned(bert, 1).state_dict().items() if "layer.1" in n or "classifier" in n}
    tallstore.pack(base, {"some": some, "all": tuned(bert, 2).state_dict()}, tmp_path / "z.tall", allow_distant=True)
    with tallstore.open(tmp_path / "z.tall") as zoo:
        logits = zoo.multitask(bert())(input_ids=tokens(2), tasks=["some", "all"]).logits
        model = bert()
        model.load_state_dict({**base, **zoo.state_dict("some")})
        with torch.no_grad():
            assert near_enough(logits[0], model(input_ids=tokens(2)[:1]).logits[0])
        assert near_enough(logits[1], own_logits(zoo, "all", bert, input_ids=tokens(2)[1:])[0])


def test_vocabularies_that_grew_and_base_of_another_type(tmp_path: Path) -> None:
    grown = tuned(llama, 1)
    grown.resize_token_embeddings(100, mean_resizing=False)
    tallstore.pack(llama().state_dict(), {"grown": grown.state_dict()}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        model = llama()
        model.resize_token_embeddings(100, mean_resizing=False)
        ids = torch.tensor([[3, 97, 99, 5]])
        found = zoo.multitask(model)(input_ids=ids, tasks=["grown"]).logits
        zoo.load_into(model, "grown")
        with torch.no_grad():
            assert near_enough(found, model(input_ids=ids).logits)
    narrow = tuned(bert, 1, 2, torch.bfloat16)
    tallstore.pack(bert().state_dict(), {"narrow": narrow.state_dict()}, tmp_path / "y.tall")
    with tallstore.open(tmp_path / "y.tall") as zoo:
        found = zoo.multitask(bert())(input_ids=tokens(1), tasks=["narrow"]).logits
        assert near_enough(found, own_logits(zoo, "narrow", bert, input_ids=tokens(1)))


@pytest.mark.parametrize("quality", ["balanced", "lossless"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copies_and_merges_of_other_tasks(dtype: torch.dtype, quality: str, tmp_path: Path) -> None:
    """What is kept as a recipe of other tasks, or as what a task differs from another, is not the base's."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(400, 256), nn.Linear(256, 512), nn.LayerNorm(512))
        model[0].weight.data *= 0.05
        return model.to(dtype)

    def moved(state: dict[str, Tensor], seed: int, share: float = 1.0) -> dict[str, Tensor]:
        steps = {n: noise(*t.shape, size=0.004, seed=10 * seed + i) for i, (n, t) in enumerate(state.items())}
        few = {n: torch.rand(t.shape, generator=torch.Generator().manual_seed(1)) < share for n, t in state.items()}
        return {n: torch.where(few[n], t.float() + steps[n], t.float()).to(dtype) for n, t in state.items()}

    base = make().state_dict()
    a, b = moved(base, 1), moved(base, 2)
    tallstore.pack(base, {"a": a, "b": b}, tmp_path / "z.tall", quality=quality)
    how = {"parent": "a"} if quality == "lossless" else {}
    tallstore.add(tmp_path / "z.tall", {"later": moved(a, 3, share=0.02)}, **how)
    tallstore.add_merge(tmp_path / "z.tall", "half", "0.5*a + 0.5*b")
    tallstore.add_merge(tmp_path / "z.tall", "copy", "1.0*a")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        related = {name for name, task in zoo.manifest.tasks.items() if task.relatives is not None}
        assert related == {"half", "copy", *(["later"] if how else [])}
        names, ids = ["half", "copy", "a", None, "b", "later", "copy"], torch.arange(7 * 11).reshape(7, 11) * 5 % 400
        multi = zoo.multitask(make().float(), decoded_bytes=0)
        found = multi(ids, tasks=names)
        for row, name in enumerate(names):
            model = make().float()
            if name is not None:
                zoo.load_into(model, name)
            with torch.no_grad():
                wanted = model(ids[row : row + 1])[0]
            assert near_enough(found[row], wanted)
        without = zoo.multitask(make().float(), ["a", "b", "half", "later"], decoded_bytes=0)
        assert multi.resident_bytes == without.resident_bytes


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_tasks(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    llama().save_pretrained(tmp_path / "base")
    for n, name in enumerate("ab"):
        torch.manual_seed(n)
        model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        for key, tensor in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(tensor, std=0.05)
        model.save_pretrained(tmp_path / name)
    tallstore.pack(tmp_path / "base", {name: tmp_path / name for name in "ab"}, tmp_path / "z.tall")
    ids = tokens(3)
    with tallstore.open(tmp_path / "z.tall") as zoo:
        logits = zoo.multitask(llama(), decoded_bytes=100_000)(input_ids=ids, tasks=["a", "b", None]).logits
        for row, name in enumerate("ab"):
            assert near_enough(logits[row], own_logits(zoo, name, llama, input_ids=ids[row : row + 1])[0])


T5 = {
    "vocab_size": 96,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def t5(kind: str = "T5ForConditionalGeneration") -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, kind.split("5", 1)[0] + "5Config")(**T5)).eval()


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "UMT5ForConditionalGeneration"])
def test_encoders_with_decoders_and_biases_between_places(kind: str, tmp_path: Path) -> None:
    """Biases between places are one for all rows in such models, and each task's here; also for beams."""
    models = {name: tuned(t5, n, kind, size=0.1) for n, name in enumerate("ab", 1)}
    tallstore.pack(t5(kind).state_dict(), states(models), tmp_path / "t5.tall", quality="high")
    ids, names = tokens(4, 8), ["b", "a", None, "b"]
    with tallstore.open(tmp_path / "t5.tall") as zoo:
        multi = zoo.multitask(t5(kind))
        logits = multi(input_ids=ids, decoder_input_ids=ids[:, :3], tasks=names).logits
        how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        written = {beams: multi.generate(ids, tasks=names, num_beams=beams, **how) for beams in (1, 2)}
        for row, name in enumerate(names):
            model, own = t5(kind), ids[row : row + 1]
            if name is not None:
                zoo.load_into(model, name)
            with torch.no_grad():
                wanted = model(input_ids=own, decoder_input_ids=own[:, :3]).logits
            assert near_enough(logits[row], wanted[0])
            for beams, found in written.items():
                assert torch.equal(found[row], model.generate(own, num_beams=beams, **how)[0])
