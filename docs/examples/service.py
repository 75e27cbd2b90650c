"""A service with one model in memory that answers for every task of an archive, and for many of them in one batch.

    pip install "tallstore[transformers]" fastapi uvicorn
    ARCHIVE=zoo.tall uvicorn service:app

    curl -X POST localhost:8000/mood -H 'content-type: application/json' -d '{"tokens": [2, 7, 1]}'
    curl -X POST localhost:8000/ -H 'content-type: application/json' \\
        -d '[{"task": "mood", "tokens": [2, 7, 1]}, {"task": "topic", "tokens": [4, 4]}]'

The base and what every task adds to it stay in memory, packed; each row of a batch is computed with its task's weights.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

import tallstore

app = FastAPI()

with tempfile.TemporaryDirectory() as folder, tallstore.open(os.environ["ARCHIVE"]) as zoo:
    shell = AutoModelForSequenceClassification.from_pretrained(zoo.export(zoo.tasks[0], Path(folder) / "model")).eval()
    model = zoo.multitask(shell, write_base=True)
    app.title = f"{len(zoo.tasks)} tasks, one archive"

Token = Annotated[int, Field(ge=0, lt=shell.config.vocab_size)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=shell.config.max_position_embeddings)]


class Request(BaseModel):
    """A tokenized text."""

    tokens: Tokens


class TaskRequest(Request):
    """One for a task."""

    task: str


@app.get("/")
def tasks() -> list[str]:
    """What can be asked."""
    return list(model.tasks)


@app.post("/")
def answer_all(requests: list[TaskRequest]) -> list[dict[str, Any]]:
    """The classes that tasks' models find, computed in one batch."""
    for request in requests:
        if request.task not in model.tasks:
            raise HTTPException(404, f"no task {request.task!r}; there are {', '.join(model.tasks)}")
    return answers(requests) if requests else []


@app.post("/{task}")
def answer(task: str, request: Request) -> dict[str, Any]:
    """The class that a task's model finds."""
    return answer_all([TaskRequest(task=task, tokens=request.tokens)])[0]


def answers(requests: Sequence[TaskRequest]) -> list[dict[str, Any]]:
    """One batch, padded to the longest row. Of heads with fewer classes than the largest the others are −∞."""
    rows = [torch.tensor(request.tokens) for request in requests]
    tokens = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=tokens, attention_mask=mask, tasks=[request.task for request in requests]).logits
    given = []
    for request, row in zip(requests, logits, strict=True):
        own = row[row > -torch.inf]
        given.append({"task": request.task, "class": int(own.argmax()), "scores": own.softmax(0).tolist()})
    return given
