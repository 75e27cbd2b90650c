"""Archives of small models, packed once in each way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from multitask_models import CLASSES, KINDS, bert, llama, states, tuned

import tallstore


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def packed_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Path]:
    home, made = tmp_path_factory.mktemp("llama"), {}

    def pack(kind: str, dtype: torch.dtype) -> Path:
        if (kind, dtype) not in made:
            tasks = {name: tuned(llama, n, dtype) for n, name in enumerate("abc", 1)}
            path = made[kind, dtype] = home / f"{len(made)}.tall"
            tallstore.pack(llama(dtype).state_dict(), states(tasks), path, **KINDS[kind])
        return made[kind, dtype]

    return pack
