"""A service with one model in memory that answers for every task of an archive.

    pip install "tallstore[fast,transformers]" fastapi uvicorn
    ARCHIVE=zoo.tall uvicorn service:app

    curl -X POST localhost:8000/mood -H 'content-type: application/json' -d '{"tokens": [2, 7, 1]}'

The base and every task's packed masks stay in memory; a request for another task rewrites the model's weights in place.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification

import tallstore

app = FastAPI()
turn = Lock()

with tempfile.TemporaryDirectory() as folder, tallstore.open(os.environ["ARCHIVE"]) as zoo:
    model = AutoModelForSequenceClassification.from_pretrained(zoo.export(zoo.tasks[0], Path(folder) / "model")).eval()
    switcher = zoo.switcher(model)
    app.title = f"{len(zoo.tasks)} tasks, one archive"


class Request(BaseModel):
    """A tokenized text."""

    tokens: list[int]


@app.get("/")
def tasks() -> list[str]:
    """What can be asked."""
    return list(switcher.tasks)


@app.post("/{task}")
def answer(task: str, request: Request) -> dict[str, Any]:
    """The class that a task's model finds."""
    if task not in switcher.tasks:
        raise HTTPException(404, f"no task {task!r}; there are {', '.join(switcher.tasks)}")
    with turn, torch.inference_mode():
        if switcher.task != task:
            switcher.switch(task)
        logits = model(input_ids=torch.tensor([request.tokens])).logits[0]
    return {"task": task, "class": int(logits.argmax()), "scores": logits.softmax(0).tolist()}
