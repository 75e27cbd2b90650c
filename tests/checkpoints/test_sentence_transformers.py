"""sentence-transformers: modules in folders of their own, and speech models with a language model beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore
from tallstore.errors import CheckpointError

from .folders import around, assert_same_weights, copied, files_of, saved

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
"""Looked for, not imported: that takes seconds, which a process that only collects tests need not wait."""

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "the", "cat"]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A transformers folder to build encoders on."""
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def dense(bert: Path) -> Any:
    import sentence_transformers
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    return sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(bert)), Pooling(16), Dense(16, 8), Normalize()], device="cpu"
    )


def static(bert: Path) -> Any:
    import sentence_transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    module = StaticEmbedding(tokenizer, embedding_dim=64)
    return sentence_transformers.SentenceTransformer(modules=[module], device="cpu")


def router(bert: Path) -> Any:
    import sentence_transformers
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    queries = [StaticEmbedding(tokenizer, embedding_dim=16)]
    documents = [Transformer(str(bert)), Pooling(16)]
    return sentence_transformers.SentenceTransformer(
        modules=[Router.for_query_document(query_modules=queries, document_modules=documents)], device="cpu"
    )


def splade(bert: Path) -> Any:
    import sentence_transformers
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    return sentence_transformers.SparseEncoder(modules=[MLMTransformer(str(bert)), SpladePooling()], device="cpu")


def cross(bert: Path) -> Any:
    import sentence_transformers

    return sentence_transformers.CrossEncoder(str(bert), num_labels=1, device="cpu")


def _encoder(*modules: Any, sparse: bool = False) -> Any:
    import sentence_transformers

    kind = sentence_transformers.SparseEncoder if sparse else sentence_transformers.SentenceTransformer
    return kind(modules=list(modules), device="cpu")


def _words() -> Any:
    from sentence_transformers.sentence_transformer.modules import WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    return WordEmbeddings(WhitespaceTokenizer(WORDS), torch.randn(len(WORDS), 16).numpy())


def cnn(bert: Path) -> Any:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    return _encoder(Transformer(str(bert)), CNN(16, 24), Pooling(72))


def words_cnn(bert: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    return _encoder(_words(), CNN(16, 24), Pooling(72))


def word_weights(bert: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling, WordWeights

    return _encoder(_words(), WordWeights(WORDS, {word: 1.0 + n for n, word in enumerate(WORDS)}), Pooling(16))


def bag_of_words(bert: Path) -> Any:
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import BoW

    return _encoder(BoW(WORDS), Dense(len(WORDS), 40))


def layers(bert: Path) -> Any:
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, WeightedLayerPooling

    pooled = WeightedLayerPooling(16, num_hidden_layers=1, layer_start=0)
    return _encoder(Transformer(str(bert)), pooled, Pooling(16), Dense(16, 24), LayerNorm(24))


def router_dense(bert: Path) -> Any:
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    routes = [[Transformer(str(bert)), Pooling(16), Dense(16, 24)] for _ in range(2)]
    return _encoder(Router.for_query_document(*routes))


def sparse_router(bert: Path) -> Any:
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    documents = [Transformer(str(bert), transformer_task="fill-mask"), SpladePooling("max")]
    queries = [SparseStaticEmbedding(tokenizer=tokenizer, frozen=False)]
    return _encoder(Router.for_query_document(queries, documents), sparse=True)


def autoencoder(bert: Path) -> Any:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    return _encoder(Transformer(str(bert)), Pooling(16), SparseAutoEncoder(16, 64, 8, 16), sparse=True)


EVERY = (
    dense, static, router, splade, cross, cnn, words_cnn, word_weights, bag_of_words, layers, router_dense,
    sparse_router, autoencoder,
)  # fmt: skip


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_what_comes_back_is_loaded_and_says_the_same(make: Callable[[Path], Any], bert: Path, tmp_path: Path) -> None:
    base, tasks = saved(tmp_path, lambda: make(bert), lambda model, folder: model.save_pretrained(str(folder)))
    _, out = around(base, tasks, tmp_path)
    kind = type(make(bert))
    for task, folder in tasks.items():
        assert files_of(out[task]) == files_of(folder)
        assert_same_weights(folder, out[task])
        models = [kind(str(each), device="cpu") for each in (folder, out[task])]
        if make is cross:
            one, two = (model.predict([("a cat", "the cat")]) for model in models)
        else:
            for encode in ("encode_query", "encode_document"):
                one, two = (
                    getattr(model, encode)(["a cat", "the b"], convert_to_tensor=True).to_dense() for model in models
                )
                assert (one == two).all()
        assert (one == two).all()


def test_a_recurrent_module_comes_back(bert: Path, tmp_path: Path) -> None:
    """Its weights; the library's own transformer does not give it the lengths that it asks for."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import LSTM, Pooling

    base, tasks = saved(
        tmp_path,
        lambda: _encoder(Transformer(str(bert)), LSTM(16, 16), Pooling(32)),
        lambda model, folder: model.save_pretrained(str(folder)),
    )
    _, out = around(base, tasks, tmp_path)
    for task, folder in tasks.items():
        assert files_of(out[task]) == files_of(folder)
        assert_same_weights(folder, out[task])


def test_folders_that_modules_json_names_belong_to_the_model_whatever_they_are_called(
    bert: Path, tmp_path: Path
) -> None:
    import sentence_transformers

    base, tasks = saved(tmp_path, lambda: dense(bert), lambda model, folder: model.save_pretrained(str(folder)))
    odd = {"1_Pooling": ".pooling", "2_Dense": "checkpoint-2/wandb"}
    for folder in (base, *tasks.values()):
        listed = (folder / "modules.json").read_text()
        for old, new in odd.items():
            (folder / new).parent.mkdir(exist_ok=True)
            (folder / old).rename(folder / new)
            listed = listed.replace(old, new)
        (folder / "modules.json").write_text(listed)
    report, out = around(base, tasks, tmp_path)
    assert not report.warnings
    for task, folder in tasks.items():
        assert files_of(out[task]) == files_of(folder)
        models = [sentence_transformers.SentenceTransformer(str(each), device="cpu") for each in (folder, out[task])]
        one, two = (model.encode("a cat") for model in models)
        assert (one == two).all()


def test_pickled_modules_come_back_as_safetensors(bert: Path, tmp_path: Path) -> None:
    import sentence_transformers

    base, tasks = saved(
        tmp_path,
        lambda: dense(bert),
        lambda model, folder: model.save_pretrained(str(folder), safe_serialization=False),
    )
    _, out = around(base, tasks, tmp_path)
    assert (out["a"] / "2_Dense" / "model.safetensors").is_file()
    one, two = (
        sentence_transformers.SentenceTransformer(str(f), device="cpu").encode("a cat") for f in (tasks["a"], out["a"])
    )
    assert (one == two).all()


def test_a_module_without_its_weights_is_refused(bert: Path, tmp_path: Path) -> None:
    base, tasks = saved(tmp_path, lambda: dense(bert), lambda model, folder: model.save_pretrained(str(folder)))
    half = copied(tasks["a"], tmp_path / "half")
    (half / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense.*modules\.json"):
        tallstore.pack(base, {"a": half}, tmp_path / "zoo.tall")
    shutil.rmtree(half / "3_Normalize", ignore_errors=True)
    assert not (tmp_path / "zoo.tall").exists()


def test_a_new_dense_layer_is_kept_whole(bert: Path, tmp_path: Path) -> None:
    base, tasks = saved(tmp_path, lambda: dense(bert), lambda model, folder: model.save_pretrained(str(folder)))
    torch.manual_seed(7)
    other = dense(bert)
    other[2].linear.weight.data = torch.randn(8, 16)
    other[2].save(str(tasks["a"] / "2_Dense"))
    _, out = around(base, tasks, tmp_path)
    assert_same_weights(tasks["a"], out["a"])


def test_a_speech_model_brings_its_language_model(tmp_path: Path) -> None:
    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        (folder / "language_model").mkdir()
        (folder / "language_model" / "5gram.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
        (folder / "language_model" / "unigrams.txt").write_text("a\nb\n")
        (folder / "language_model" / "attrs.json").write_text('{"alpha": 0.5}')
        (folder / "alphabet.json").write_text('{"labels": ["a", "b"], "is_bpe": false}')

    config = transformers.Wav2Vec2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    base, tasks = saved(tmp_path, lambda: transformers.Wav2Vec2ForCTC(config), save)
    report, out = around(base, tasks, tmp_path)
    assert not report.warnings
    for task, folder in tasks.items():
        assert files_of(out[task]) == files_of(folder)
        assert (out[task] / "language_model/5gram.bin").read_bytes() == (
            folder / "language_model/5gram.bin"
        ).read_bytes()
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert zoo.manifest.tasks["a"].files["language_model/5gram.bin"].startswith("common/"), "stored once"
