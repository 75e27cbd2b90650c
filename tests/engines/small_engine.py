"""A small engine that fuses tensors and shares them out, as vLLM's workers do, and the models that it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from support import near, noise
from torch import Tensor, nn

from tallstore.engines.decode_ahead import ahead
from tallstore.engines.task_exchange import Exchange
from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue, Loaded, layer_of

State = dict[str, Tensor]
PARTS = ("q_proj", "k_proj", "v_proj")
CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "model_type": "llama"}


def base_state() -> State:
    state = {"model.embed_tokens.weight": noise(40, 16, seed=1), "model.norm.weight": noise(300, seed=2)}
    for layer in range(3):
        for number, part in enumerate(PARTS):
            state[f"model.layers.{layer}.self_attn.{part}.weight"] = noise(16, 16, seed=10 * layer + number)
        state[f"model.layers.{layer}.mlp.up_proj.weight"] = noise(24, 16, seed=10 * layer + 9)
    return state


def task_states() -> dict[str, State]:
    """`all` moved everything, `one` the first layer's queries alone, `none` nothing."""
    base = base_state()
    moved = {name: near(tensor, seed=50 + i) for i, (name, tensor) in enumerate(base.items())}
    query = "model.layers.0.self_attn.q_proj.weight"
    return {"all": moved, "one": {**base, query: near(base[query], seed=7, size=0.1)}, "none": dict(base)}


OPEN: list[Catalogue | Exchange] = []


class Served:
    """A rank of an engine. Queries, keys and values are one parameter; a layer of which not all is given is spoilt."""

    def __init__(self, source: Path | None, task: str = "all", rank: int = 0, ranks: int = 1) -> None:
        self.rank, self.ranks, self.refused = rank, ranks, None
        self.loaded: Loaded | None = None
        self.started = base_state()
        self.module = nn.ParameterDict()
        self.reloads: list[list[str]] = []
        if source is None:
            self.reload(iter(self.started.items()))
            return
        catalogue, applied = Catalogue(ArchiveSource(archive=str(source)), resident=True), {}
        OPEN.append(catalogue)
        self.reload(self.weights(catalogue, task, list(catalogue.tensors(task)), applied))
        self.loaded = Loaded(catalogue=catalogue, task=task, applied=applied)

    @property
    def config(self) -> dict[str, Any]:
        return CONFIG

    def weights(
        self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]
    ) -> Iterator[tuple[str, Tensor]]:
        if self.ranks > 1:
            return catalogue.lazy_weights(task, names, applied)
        return ahead(catalogue.weights(task, names, applied))

    def straight(self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]) -> list[str]:
        return names

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {}

    def reload(self, weights: Iterator[tuple[str, Tensor]] | None) -> None:
        layers: dict[str, dict[str, Tensor]] = {}
        self.reloads.append([])
        for name, tensor in weights if weights is not None else self.started.items():
            size = len(tensor) // self.ranks
            part = torch.empty(size, *tensor.shape[1:])
            part.copy_(tensor.narrow(0, self.rank * size, size))
            layers.setdefault(layer_of(name), {})[name] = part
            self.reloads[-1].append(name)
            if layer_of(name).endswith("embed_tokens"):
                self.module["embed"] = nn.Parameter(part)  # as it comes: before anything after it can fail
        for layer, tensors in layers.items():
            whole = [tensors.get(f"{layer}.{p}.weight", torch.full((16, 16), torch.nan)) for p in PARTS]
            fused = torch.cat(whole) if "self_attn" in layer else torch.cat([*tensors.values()])
            self.module[layer.replace(".", "_")] = nn.Parameter(fused)

    def recover(self) -> None:
        pass

    def holds(self, state: State) -> bool:
        """Whether its parameters are those of a model with this state."""
        wanted = Served(None)
        wanted.rank, wanted.ranks, wanted.module = self.rank, self.ranks, nn.ParameterDict()
        wanted.reload(iter(state.items()))
        mine, theirs = self.module.state_dict(), wanted.module.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


class Engine:
    """What `switch` needs of vLLM's `LLM`, with any number of ranks."""

    def __init__(self, *ranks: Served) -> None:
        self.ranks = ranks
        self.exchanges = [Exchange(rank) for rank in ranks]
        OPEN.extend(self.exchanges)
        self.cleared, self.unfinished, self.busy_cache, self.dead = 0, False, False, False

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        if self.dead:
            raise type("EngineDeadError", (Exception,), {})("see the log")
        name = method.removeprefix("tallstore_")
        if name == "settle":
            return [each.settle(args[0], keep=args[1]) for each in self.exchanges]
        return [getattr(each, name)(*args) for each in self.exchanges]

    def has_unfinished_requests(self) -> bool:
        return self.unfinished

    def reset_prefix_cache(self) -> bool:
        self.cleared += not self.busy_cache
        return not self.busy_cache

    def reset_encoder_cache(self) -> None:
        self.cleared += 1

    def reset_mm_cache(self) -> None:
        self.cleared += 1
