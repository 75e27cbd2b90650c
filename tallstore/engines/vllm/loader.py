"""vLLM's loader for `--load-format tallstore`: a task's weights from an archive in place of a checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from tallstore.engines.decode_ahead import ahead, begun
from tallstore.engines.decode_into_layers import WrittenParameter, written_parameters
from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue, Loaded
from tallstore.errors import ModelMismatchError

__all__ = ["LOADED", "WRITTEN", "ArchiveLoader", "given_weights"]

LOADED: WeakKeyDictionary[nn.Module, Loaded] = WeakKeyDictionary()
"""Of each model that was loaded in this process, what it was loaded from."""
WRITTEN: WeakKeyDictionary[nn.Module, tuple[WrittenParameter, ...]] = WeakKeyDictionary()
"""Of each such model whose task can be exchanged, the parameters that hold a checkpoint's tensors as they are."""


class ArchiveLoader(BaseModelLoader):
    """Loads one task. Its options are `task` and those of `ArchiveSource`; the archive may be the model's name."""

    def download_model(self, model_config: Any) -> None:
        """Have the task's weights at hand, of an archive that is far away."""
        source, task = self._asked(model_config)
        catalogue = Catalogue(source)
        try:
            catalogue.check(task)
        finally:
            catalogue.close()

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Give a model all tensors of the task. ModelMismatchError if it has others beside."""
        config = get_current_vllm_config().parallel_config
        # On every core, but not while vLLM makes layers: their types are torch's default, which is set for the process.
        catalogue = begun(partial(self._open, model_config, config))()
        _, task = self._asked(model_config)
        applied: dict[str, str] = {}
        loaded = cast(Any, model).load_weights(
            given_weights(catalogue, task, list(catalogue.tensors(task)), config, applied)
        )
        if loaded is not None and model_config.quantization is None:
            missing = {name for name, parameter in model.named_parameters() if parameter.numel()} - loaded
            own = {name for name in missing if not _made_by_vllm(model, name)}
            if own:
                raise ModelMismatchError(f"{catalogue.url}: task {task!r} has no weights for the model's {min(own)!r}")
        LOADED[model] = Loaded(catalogue=catalogue, task=task, applied=applied)
        if config.worker_extension_cls:
            shapes = {name: facts.shape for name, facts in catalogue.tensors(task).items()}
            fused = getattr(model, "packed_modules_mapping", {})
            WRITTEN[model] = written_parameters(model, applied, shapes, fused)

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:  # noqa: ARG002
        """What vLLM's own `reload_weights` asks for: the task's tensors, anew."""
        source, task = self._asked(model_config)
        catalogue = Catalogue(source)
        try:
            catalogue.check(task)
            yield from catalogue.weights(task, list(catalogue.tensors(task)), {})
        finally:
            catalogue.close()

    def _open(self, model_config: Any, parallel: Any) -> Catalogue:
        """The archive, and its base in memory if tasks are to be exchanged. It has the task that is asked for."""
        source, task = self._asked(model_config)
        catalogue = Catalogue(source, resident=bool(parallel.worker_extension_cls))
        try:
            catalogue.check(task)
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    def _asked(self, model_config: Any) -> tuple[ArchiveSource, str]:
        options = self.load_config.model_loader_extra_config
        return ArchiveSource.parse(options if isinstance(options, dict) else {}, str(model_config.model))


def given_weights(
    catalogue: Catalogue, task: str, names: list[str], parallel: Any, applied: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors for one rank: of several ranks each takes its own part, a single one is decoded for ahead.

    `applied` is given the hash of each tensor, or of each part that the rank took.
    """
    if parallel.tensor_parallel_size * parallel.pipeline_parallel_size > 1:
        return catalogue.lazy_weights(task, names, applied)
    return ahead(catalogue.weights(task, names, applied))


def _made_by_vllm(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a module whose own method makes what no checkpoint has, as vLLM's check has it."""
    module = model.get_submodule(name.rpartition(".")[0])
    method = getattr(module, "quant_method", None)
    return hasattr(method, "process_weights_after_loading")
