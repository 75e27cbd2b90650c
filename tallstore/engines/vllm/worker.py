"""What each of vLLM's workers can do besides: exchange the task that its model has, in place.

vLLM makes this class a base of its worker's (`--worker-extension-cls`), so that `collective_rpc` reaches its methods.
An exchange is in three steps, so that several ranks agree: `prepare` checks everything that can be checked and changes
nothing, `apply` gives the model the tensors of the layers that differ, `settle` keeps that or takes it back. Methods
answer with plain values and do not raise: an error is one of these values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tallstore.engines.decode_into_layers import StraightLayers, WrittenParameter
from tallstore.engines.task_exchange import Exchange
from tallstore.engines.vllm.plugin import check_vllm
from tallstore.engines.worker_catalogue import Catalogue

__all__ = ["TaskWorker"]


class TaskWorker:
    """The methods that vLLM's worker gets. `self` is the worker."""

    vllm_config: Any
    model_runner: Any

    def tallstore_prepare(self, ticket: str, task: str, source: dict[str, Any] | None) -> dict[str, Any]:
        """Check that the model can be given a task."""
        return _exchange(self).prepare(ticket, task, source)

    def tallstore_apply(self, ticket: str) -> dict[str, Any]:
        """Give it the task's tensors; if that fails, those that it had."""
        return _exchange(self).apply(ticket)

    def tallstore_settle(self, ticket: str, keep: bool) -> dict[str, Any]:
        """End an exchange: keep what was given, or take it back."""
        return _exchange(self).settle(ticket, keep=keep)

    def tallstore_serving(self) -> dict[str, Any]:
        """What the model is."""
        return _exchange(self).serving()


class _WorkerModel:
    """A worker's model, as an exchange sees it."""

    def __init__(self, worker: TaskWorker) -> None:
        from tallstore.engines.vllm.loader import LOADED, WRITTEN

        check_vllm()
        self._worker = worker
        self.loaded = LOADED.get(self.module)
        self._straight = _straight(self.module, WRITTEN.get(self.module, ()))

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._worker.model_runner.get_model()
        return module

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, as far as it is known without an archive."""
        from transformers import PretrainedConfig

        described, _ = PretrainedConfig.get_config_dict(str(self._worker.vllm_config.model_config.model))
        return dict(described)

    @property
    def refused(self) -> str | None:
        """Why its weights cannot be exchanged; None where they can."""
        parallel = self._worker.vllm_config.parallel_config
        if parallel.data_parallel_size > 1:
            return "it is one of several that share the requests (data parallel), which are not reached together"
        if self._worker.vllm_config.speculative_config is not None:
            return "it has a draft model of its own"
        if self._worker.vllm_config.lora_config is not None:
            return "it has LoRA layers around the model's own"
        return None

    def weights(
        self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]
    ) -> Iterator[tuple[str, Tensor]]:
        """A task's tensors, for this rank."""
        from tallstore.engines.vllm.loader import given_weights

        return given_weights(catalogue, task, names, self._worker.vllm_config.parallel_config, applied)

    def straight(self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]) -> list[str]:
        """Write what plain layers hold; the names that are left."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self._worker.vllm_config), torch.no_grad():
            return self._straight.write(catalogue, task, names, applied)

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Memory that plain layers compute from."""
        return self._straight.held(names)

    def reload(self, weights: Iterator[tuple[str, Tensor]] | None) -> None:
        """Write tensors, or with None those that the engine was started with."""
        from tallstore.engines.vllm.quiet import without_partial_warnings

        with without_partial_warnings():
            reload: Any = self._worker.reload_weights  # type: ignore[attr-defined] # vLLM's own method
            reload() if weights is None else reload(weights_iterator=weights)

    def recover(self) -> None:
        """Make whole what a reload that failed left half done; its values are not to be relied on."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        config = self._worker.vllm_config
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(config):
            finalize_layerwise_reload(self.module, config.model_config)


def _straight(model: nn.Module, written: tuple[WrittenParameter, ...]) -> StraightLayers:
    """The layers that are written straight: none with a vLLM that has other layers than those known here."""
    try:
        from tallstore.engines.vllm.layers import finish, is_plain, straight_is_safe
    except ImportError:
        return StraightLayers(model, (), lambda _: False, lambda _: None)
    return StraightLayers(model, written if straight_is_safe(model) else (), is_plain, finish)


def _exchange(worker: TaskWorker) -> Exchange:
    """The worker's one exchange, made when it is first asked for."""
    made = vars(worker).get("_tallstore_exchange")
    if made is None:
        made = vars(worker)["_tallstore_exchange"] = Exchange(_WorkerModel(worker))
    assert isinstance(made, Exchange)
    return made
