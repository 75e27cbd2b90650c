"""Contexts of sampled chunks: a reader takes them, and they tell at least as much as the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.codecs.dare_contexts import CONTEXTS, choose_contexts
from tallstore.kernels.lattice import LEVELS, Bytes

Multiples = np.ndarray


def drawn(n: int, seed: int, sizes: list[float]) -> tuple[Bytes, Multiples]:
    """Tags of levels whose changes are about so many steps, and multiples as they are drawn."""
    rng = np.random.default_rng(seed)
    levels, u = rng.integers(0, len(sizes), n), rng.random(n)
    changes = np.array(sizes)[levels] * rng.standard_normal(n)
    times = np.maximum(np.ceil(np.abs(changes) - u), 0) * np.sign(changes)
    return (levels | (u * CONTEXTS).astype(int) << 4).astype(np.uint8), times.astype(np.int16)


def bits(contexts: Bytes, tags: Bytes, times: Multiples) -> float:
    """Entropy of magnitudes, given contexts."""
    own = contexts[tags & 15]
    context = (own & 15).astype(int) + (tags >> 4 >> (own >> 4))
    counts = np.zeros((CONTEXTS, 1 + int(np.abs(times).max(initial=0))))
    np.add.at(counts, (context, np.abs(times)), 1)
    total = counts.sum(1, keepdims=True)
    return float(-(counts * np.log2(np.where(counts > 0, counts / np.maximum(total, 1), 1))).sum())


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 20000), st.integers(0, 1000), st.lists(st.floats(0, 300), min_size=1, max_size=LEVELS))
def test_a_reader_takes_them(n: int, seed: int, sizes: list[float]) -> None:
    contexts = choose_contexts(*drawn(n, seed, sizes))
    assert (contexts.dtype, contexts.shape) == (np.uint8, (LEVELS,))
    begin, down = contexts & 15, contexts >> 4
    assert (down <= 4).all()
    assert (begin + (15 >> down) < CONTEXTS).all()


@pytest.mark.parametrize("sizes", [[0.3], [0.01, 0.4], [0.001, 0.02, 0.1, 0.3, 0.5, 1, 2, 40], [5.0] * 16, [0.0]])
def test_they_tell_as_much_as_one_set_for_all_levels(sizes: list[float]) -> None:
    tags, times = drawn(100_000, 1, sizes)
    chosen, plain = choose_contexts(tags, times), np.zeros(LEVELS, np.uint8)
    assert bits(chosen, tags, times) <= bits(plain, tags, times) + 48 * CONTEXTS


def test_classes_are_told_apart_where_they_tell_something() -> None:
    tags, times = drawn(100_000, 1, [0.0, 0.4])
    contexts = choose_contexts(tags, times)
    assert contexts[0] >> 4 == 4, "nothing moves there"
    assert contexts[1] >> 4 <= 1
    one = np.full(LEVELS, 4 << 4, np.uint8)
    assert bits(contexts, tags, times) < 0.6 * bits(one, tags, times)


def test_of_nothing_all_classes_have_one_context() -> None:
    contexts = choose_contexts(np.zeros(0, np.uint8), np.zeros(0, np.int16))
    assert (contexts == 4 << 4).all()
