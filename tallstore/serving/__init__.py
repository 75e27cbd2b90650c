"""Many tasks in one batch: a model whose rows are each computed with a task's own weights, which stay packed."""

from tallstore.serving.multitask import MultitaskModel

__all__ = ["MultitaskModel"]
