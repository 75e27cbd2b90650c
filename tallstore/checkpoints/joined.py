"""One checkpoint of the tensors of others, under names of its own: components of a model, one set of weights of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.errors import CheckpointError

__all__ = ["JoinedCheckpoint"]


class JoinedCheckpoint(Checkpoint):
    """Tensors of several checkpoints. Those are its own from then on: it closes them."""

    def __init__(self, where: str, parts: Sequence[Checkpoint], table: Mapping[str, tuple[int, str]]) -> None:
        """`table`: name → the number of the checkpoint that has the tensor, and its name there."""
        self.where = where
        self._parts = list(parts)
        self.far = any(part.far for part in self._parts)
        self._table = dict(table)
        self.tensors: dict[str, TensorInfo] = {
            name: self._parts[number].tensors[own] for name, (number, own) in self._table.items()
        }
        if not self.tensors:
            raise CheckpointError(f"{where}: holds no tensor")
        self.ties = self._ties()

    @classmethod
    def with_prefixes(cls, where: str, parts: Mapping[str, Checkpoint]) -> JoinedCheckpoint:
        """The tensors of every checkpoint, each with what is put before its names."""
        table = {
            f"{prefix}{name}": (number, name)
            for number, (prefix, part) in enumerate(parts.items())
            for name in part.tensors
        }
        return cls(where, list(parts.values()), table)

    def _ties(self) -> dict[str, str]:
        """Ties among the tensors that were taken; the first of those that share memory is the one that has it."""
        ties: dict[str, str] = {}
        first: dict[tuple[int, str], str] = {}
        for name, (number, own) in self._table.items():
            holder = self._parts[number].ties.get(own, own)
            if (other := first.setdefault((number, holder), name)) != name:
                ties[name] = other
        return ties

    def read(self, name: str, start: int, stop: int) -> Tensor:
        number, own = self._table[name]
        return self._parts[number].read(own, start, stop)

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        number, own = self._table[name]
        self._parts[number].read_into(own, start, out)

    def read_runs(self, name: str, runs: Sequence[tuple[int, int]], out: Tensor) -> None:
        number, own = self._table[name]
        self._parts[number].read_runs(own, runs, out)

    def place(self, name: str) -> tuple[int, int] | None:
        number, own = self._table[name]
        return self._parts[number].place(own)

    def fingerprint(self) -> str:
        return repr(([part.fingerprint() for part in self._parts], list(self._table.items())))

    def map(self) -> None:
        for part in self._parts:
            part.map()

    def __reduce__(self) -> tuple[type, tuple[str, list[Checkpoint], dict[str, tuple[int, str]]]]:
        return JoinedCheckpoint, (self.where, self._parts, self._table)

    def close(self) -> None:
        for part in self._parts:
            part.close()
