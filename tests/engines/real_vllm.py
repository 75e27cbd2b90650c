"""Tasks of an archive in the real vLLM, on a CPU: `bash .ci/vllm` installs it and runs this. Not one of the main tests.

A tiny llama and three fine-tunes of it are made here. What vLLM answers to each plain folder, greedily, is what every
way in has to answer: an engine started from the archive, a hundred exchanges, two ranks, a server and its route.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

TASKS = ("red", "green", "blue")
PROMPTS = ("abc", "the sea", "0123456789")
COMMON: dict[str, Any] = {"max_model_len": 96, "enforce_eager": True, "seed": 0, "dtype": "float32"}
Answers = list[list[int]]


def make_zoo(root: Path) -> None:
    """Folders of a base and its tasks, and `zoo.tall`. `blue` leaves all but the first layer as it is."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    import tallstore

    letters = {chr(code): code - 32 for code in range(32, 127)}
    words = Tokenizer(models.WordLevel({**letters, "<unk>": 95}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=96, hidden_size=256, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        )
    )  # fmt: skip
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, name in enumerate(("base", *TASKS)):
        generator = torch.Generator().manual_seed(number)
        for key, tensor in model.state_dict().items():
            moves = number and (name != "blue" or ".layers.0." in key)
            change = torch.randn(tensor.shape, generator=generator) * (0.02 if name != "blue" else 0.2)
            tensor.copy_(base[key] + change if moves else base[key])
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tasks = {name: root / name for name in TASKS}
    tallstore.pack(root / "base", tasks, root / "zoo.tall", quality="lossless", allow_distant=True)


@contextmanager
def engine(**options: Any) -> Iterator[Any]:
    from vllm import LLM

    llm = LLM(**{**COMMON, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def ask(llm: Any) -> Answers:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    return [list(each.outputs[0].token_ids) for each in llm.generate(list(PROMPTS), greedy, use_tqdm=False)]


def plain_answers(root: Path, **options: Any) -> dict[str, Answers]:
    found = {}
    for task in TASKS:
        with engine(model=str(root / task), **options) as llm:
            found[task] = ask(llm)
    assert len({json.dumps(each) for each in found.values()}) == len(TASKS), "tasks that answer alike show nothing"
    return found


def memory_of(processes: Any) -> int:
    return sum(each.memory_full_info().uss for each in processes)


def every_task_and_a_hundred_exchanges(root: Path, wanted: dict[str, Answers]) -> None:
    import psutil

    from tallstore.engines.vllm import engine_options, serving, switch

    with engine(**engine_options(root / "zoo.tall", "red")) as llm:
        assert ask(llm) == wanted["red"]
        digests = {"red": serving(llm)["digest"]}
        for task in TASKS:
            switch(llm, task)
            assert ask(llm) == wanted[task], task
        processes = psutil.Process().children(recursive=True)
        before, order = memory_of(processes), random.Random(0)
        for _ in range(100):
            task = order.choice(TASKS)
            told = switch(llm, task)
            assert ask(llm) == wanted[task], task
            assert digests.setdefault(task, told["digest"]) == told["digest"] == serving(llm)["digest"]
        grown = memory_of(processes) / before
        assert grown < 1.03, f"memory is {grown:.3f} of what it was"


def what_is_refused_leaves_the_engine_as_it_is(root: Path, wanted: dict[str, Answers]) -> None:
    import tallstore
    from tallstore.engines.vllm import engine_options, serving, switch
    from tallstore.errors import EngineError, NoSuchTaskError, TallstoreError

    def refused(kind: type[Exception], text: str, *arguments: Any, **how: Any) -> None:
        try:
            switch(llm, *arguments, **how)
        except kind as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"{arguments}: not refused")
        assert ask(llm) == wanted["red"]
        assert serving(llm)["task"] == "red"

    from vllm import SamplingParams

    zoo = root / "copy.tall"
    zoo.write_bytes((root / "zoo.tall").read_bytes())
    with engine(**engine_options(zoo, "red")) as llm:
        refused(NoSuchTaskError, "no task 'five'; there are red, green, blue", "five")
        llm.llm_engine.add_request("1", "abc", SamplingParams(temperature=0.0, max_tokens=4))
        try:
            switch(llm, "blue")
        except EngineError as error:
            assert "requests are in flight" in str(error)
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        # Of a copy, so that the worker's own file is damaged while it runs.
        with tallstore.open(zoo) as opened:
            part = next(path for path in opened.manifest.tasks["green"].parts["mask"])
        from zipfile import ZipFile

        with ZipFile(zoo) as archive:
            at = archive.getinfo(part)
        with zoo.open("r+b") as file:
            file.seek(at.header_offset + at.file_size - 100)
            file.write(bytes(90))
        refused(TallstoreError, "green", "green")
        assert switch(llm, "blue")["task"] == "blue"
        assert ask(llm) == wanted["blue"]


def an_engine_without_an_archive(root: Path, wanted: dict[str, Answers]) -> None:
    from tallstore.engines.vllm import switch
    from tallstore.engines.vllm.options import WORKER
    from tallstore.errors import EngineError

    with engine(model=str(root / "red"), worker_extension_cls=WORKER) as llm:
        for task in ("blue", "red", "green"):
            switch(llm, task, source=str(root / "zoo.tall"))
            assert ask(llm) == wanted[task], task
    with engine(model=str(root / "red")) as llm:
        try:
            switch(llm, "blue", source=str(root / "zoo.tall"))
        except EngineError as error:
            assert "worker_extension_cls" in str(error), error
        assert ask(llm) == wanted["red"]


def two_ranks(root: Path, _: dict[str, Answers]) -> None:
    """Rounding is another than with one, so the plain folder is asked with two as well."""
    from tallstore.engines.vllm import engine_options, switch

    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # a core each, where there is one node of memory
    wanted = {}
    with engine(model=str(root / "red"), tensor_parallel_size=2) as llm:
        for task in TASKS:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(root / task)})
            llm.reset_prefix_cache()
            wanted[task] = ask(llm)
    with engine(**engine_options(root / "zoo.tall", "red"), tensor_parallel_size=2) as llm:
        for task in ("red", "blue", "green", "blue", "red"):
            switch(llm, task)
            assert ask(llm) == wanted[task], task
    del os.environ["VLLM_CPU_OMP_THREADS_BIND"]


def a_worker_that_dies(root: Path, _: dict[str, Answers]) -> None:
    import psutil

    from tallstore.engines.vllm import engine_options, switch
    from tallstore.errors import EngineError

    with engine(**engine_options(root / "zoo.tall", "red")) as llm:
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # one that ended, of an engine before this one
                if "EngineCore" in " ".join(each.cmdline()) or "spawn_main" in " ".join(each.cmdline()):
                    each.send_signal(signal.SIGKILL)
        try:
            switch(llm, "blue")
        except EngineError as error:
            assert "died" in str(error), error
        else:
            raise AssertionError("it was not noticed")


def a_server(root: Path, wanted: dict[str, Answers]) -> None:
    port = random.SystemRandom().randrange(20000, 40000)
    command = [
        *(sys.executable, "-m", "tallstore", "serve", str(root / "zoo.tall"), "red", "--"),
        *("--port", str(port), "--host", "127.0.0.1", "--max-model-len", "96", "--enforce-eager", "--dtype", "float32"),
    ]
    server = subprocess.Popen(command, start_new_session=True)

    def call(path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def completed(tokens: int = 12) -> Any:
        asked = {
            "model": "zoo", "prompt": list(PROMPTS), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True,
        }  # fmt: skip
        status, said = call("/v1/completions", asked)
        assert status == 200, said
        return [each["token_ids"][:12] for each in said["choices"]]

    try:
        wait_for(lambda: call("/health")[0] == 200, server)
        assert completed() == wanted["red"]
        assert call("/tallstore")[1]["tasks"] == list(TASKS)
        status, told = call("/tallstore/switch", {"task": "green"})
        assert (status, told["task"]) == (200, "green"), told
        assert completed() == wanted["green"]
        assert call("/tallstore/switch", {"task": "five"})[0] == 404
        assert call("/tallstore/switch", {"task": "red", "source": "/etc"})[0] == 400
        assert completed() == wanted["green"]
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(completed(80)))
        asking.start()
        time.sleep(0.1)
        statuses: list[int] = []
        both = [
            threading.Thread(target=lambda task=task: statuses.append(call("/tallstore/switch", {"task": task})[0]))
            for task in ("blue", "blue")
        ]
        for each in both:
            each.start()
        for each in (*both, asking):
            each.join()
        assert sorted(statuses) in ([200, 200], [200, 409]), statuses
        assert answers[0] in (wanted["green"], wanted["blue"]), "a request was answered by two tasks"
        assert completed() == wanted["blue"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def wait_for(ready: Callable[[], bool], server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 400
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(1)
    raise AssertionError("the server does not answer")


CHECKS = (
    every_task_and_a_hundred_exchanges, what_is_refused_leaves_the_engine_as_it_is, an_engine_without_an_archive,
    a_server, two_ranks, a_worker_that_dies,
)  # fmt: skip


def main(names: list[str]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tallstore-") as folder:
        root = Path(folder)
        make_zoo(root)
        wanted = plain_answers(root)
        chosen = [check for check in CHECKS if not names or check.__name__ in names]
        for check in chosen:
            started = time.monotonic()
            try:
                check(root, wanted)
                said = "passed"
            except Exception:
                import traceback

                traceback.print_exc()
                failed, said = failed + 1, "FAILED"
            print(f"{check.__name__.replace('_', ' ')}: {said} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
