"""A service with one model in memory that answers for every task of an archive.

    pip install "tallstore[transformers]" fastapi uvicorn
    ARCHIVE=zoo.tall uvicorn service:app

    curl -X POST localhost:8000/mood -H 'content-type: application/json' -d '{"tokens": [2, 7, 1]}'

Configurations differ between tasks (heads have other sizes), so a model is made for each shape of head; weights are
decoded on demand, and those of the last few tasks are kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from transformers import AutoConfig, AutoModelForSequenceClassification

import tallstore

zoo = tallstore.open(os.environ["ARCHIVE"])
app = FastAPI(title=f"{len(zoo.tasks)} tasks, one archive")
turn = Lock()
loaded: dict[str, str] = {}
"""Which task's weights each model holds, by the model's configuration."""


class Request(BaseModel):
    """A tokenized text."""

    tokens: list[int]


@lru_cache(maxsize=8)
def weights(task: str) -> dict[str, torch.Tensor]:
    """A task's state dict, decoded."""
    return zoo.state_dict(task)


@lru_cache
def configuration(task: str) -> str:
    """A task's configuration, as JSON that is equal for tasks that can share a model."""
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.from_pretrained(zoo.export(task, Path(folder) / "model"))
    facts = {k: v for k, v in config.to_dict().items() if k not in {"id2label", "label2id", "_name_or_path"}}
    return json.dumps(facts | {"num_labels": config.num_labels}, sort_keys=True, default=str)


@lru_cache
def model(configured: str) -> Any:
    """The one model of a configuration, without weights of its own."""
    facts = json.loads(configured)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    return AutoModelForSequenceClassification.from_config(config).eval()


@app.get("/")
def tasks() -> list[str]:
    """What can be asked."""
    return list(zoo.tasks)


@app.post("/{task}")
def answer(task: str, request: Request) -> dict[str, Any]:
    """The class that a task's model finds."""
    if task not in zoo.tasks:
        raise HTTPException(404, f"no task {task!r}; there are {', '.join(zoo.tasks)}")
    configured = configuration(task)
    with turn, torch.inference_mode():
        if loaded.get(configured) != task:
            model(configured).load_state_dict(weights(task))
            loaded[configured] = task
        logits = model(configured)(input_ids=torch.tensor([request.tokens])).logits[0]
    return {"task": task, "class": int(logits.argmax()), "scores": logits.softmax(0).tolist()}
