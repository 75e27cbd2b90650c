"""Rows of many tasks in one batch give what each task's own model gives, for every way that tasks are packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import near, noise, without_kernels
from torch import Tensor, nn

import tallstore
from tallstore.errors import ModelChangedError, ModelMismatchError, NoSuchTaskError, OptionError
from tallstore.kernels import products

transformers = pytest.importorskip("transformers")

KINDS = {
    "default": {},
    "small": {"quality": "small"},
    "high": {"quality": "high"},
    "many bits": {"bits": 3.0},
    "shared": {"recipe": "fit"},
    "shared f32": {"recipe": "tall", "vector": "f32"},
    "shared q8": {"recipe": "fit", "vector": "q8"},
    "one scale": {"recipe": "emr"},
    "shared bf16": {"recipe": "mean", "vector": "bf16"},
    "without loss": {"quality": "lossless"},
    "raw": {"base_codec": "raw"},
}
BERT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def bert(labels: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return (
        transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=labels)).to(dtype).eval()
    )


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(dtype).eval()


def tuned(make: Callable[..., nn.Module], seed: int, *args: object, size: float = 0.02) -> nn.Module:
    """A model whose every tensor is a little elsewhere; most rows of tables are not."""
    model = make(*args)
    with torch.no_grad():
        for n, (_, tensor) in enumerate(model.named_parameters()):
            moved = near(tensor.detach(), seed=100 * seed + n, size=size)
            if len(tensor) == BERT["vocab_size"]:
                moved[seed::3] = tensor[seed::3]
            tensor.copy_(moved)
    return model


def states(models: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {task: model.state_dict() for task, model in models.items()}


def own_logits(
    zoo: tallstore.Zoo, task: str, make: Callable[..., nn.Module], *args: object, **inputs: Tensor
) -> Tensor:
    """What a task's own model gives."""
    model = make(*args)
    zoo.load_into(model, task)
    with torch.no_grad():
        return model(**inputs).logits


def near_enough(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def tokens(rows: int, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


CLASSES = {"a": 2, "b": 5, "c": 3}


@pytest.fixture(scope="module")
def packed_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home, made = tmp_path_factory.mktemp("bert"), {}

    def pack(kind: str) -> Path:
        if kind not in made:
            base = {n: t for n, t in bert().state_dict().items() if not n.startswith("classifier")}
            tasks = {name: tuned(bert, n, labels) for n, (name, labels) in enumerate(CLASSES.items(), 1)}
            made[kind] = home / f"{len(made)}.tall"
            tallstore.pack(base, states(tasks), made[kind], **KINDS[kind])
        return made[kind]

    return pack


@pytest.fixture
def zoo(packed_bert: Callable[[str], Path]) -> Iterator[tallstore.Zoo]:
    with tallstore.open(packed_bert("default")) as found:
        yield found


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


@pytest.mark.parametrize("whole", [False, True])
def test_both_ways_of_a_layer_are_the_task_s(whole: bool, zoo: tallstore.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the packed form, and decoded first: which is quicker depends on how many rows want it."""
    from tallstore.serving import layers

    monkeypatch.setattr(layers, "WRITE", -1e9 if whole else 1e9)
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


@pytest.fixture(scope="module")
def packed_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Path]:
    home, made = tmp_path_factory.mktemp("llama"), {}

    def pack(kind: str, dtype: torch.dtype) -> Path:
        if (kind, dtype) not in made:
            tasks = {name: tuned(llama, n, dtype) for n, name in enumerate("abc", 1)}
            path = made[kind, dtype] = home / f"{len(made)}.tall"
            tallstore.pack(llama(dtype).state_dict(), states(tasks), path, **KINDS[kind])
        return made[kind, dtype]

    return pack


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


# -------------------------------------------------------------------------------------------------------- the face


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
