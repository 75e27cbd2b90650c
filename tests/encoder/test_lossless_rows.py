"""`quality="lossless"`: every task comes back bit for bit by the plain verbs, whatever its numbers are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from processes import child
from safetensors.torch import load_file
from support import FLOATS, State, assert_same, kinds, near, noise, packed, same_bits, spoilt, tiny_zoo
from torch import nn

import tallstore
from tallstore import codecs
from tallstore.cli import main
from tallstore.errors import DamagedError, OptionError
from tallstore.report.facts import gather
from tallstore.report.tables import by_task
from tallstore.zoo import Zoo

NAN, INF = float("nan"), float("inf")


def motley() -> tuple[State, dict[str, State]]:
    """Every pair of float types, other types, odd numbers, resized rows, ties, heads: in tensors of several chunks."""
    pairs = list(itertools.product(FLOATS, FLOATS))
    base = {f"{i}": noise(50, 30, seed=i, dtype=of_base) for i, (of_base, _) in enumerate(pairs)}
    base |= {
        "emb": noise(80, 30, seed=40),
        "frozen": noise(400, seed=41),
        "ids": torch.arange(1300),
        "codes": torch.randint(-9, 9, (60, 50), dtype=torch.int8),
        "odd": noise(2500, seed=42, dtype=torch.bfloat16),
        "flipped": noise(1200, seed=43, dtype=torch.bfloat16),
        "unlike": noise(1200, seed=44, dtype=torch.float16),
        "f8": noise(40, 40, seed=45).to(torch.float8_e4m3fn),
        "nan": spoilt(noise(1200, seed=46), NAN),
    }
    tasks = {}
    for seed, task in ((100, "a"), (200, "b")):
        state = {f"{i}": near(base[f"{i}"].to(t), seed + i, size=0.01) for i, (_, t) in enumerate(pairs)}
        state["emb"] = torch.cat([near(base["emb"], seed), noise(7, 30, seed=seed)])
        state |= {"frozen": base["frozen"].clone(), "ids": base["ids"] + seed, "head": noise(9, 9, seed=seed)}
        state["codes"] = base["codes"].clone()
        state["codes"][7] += 1
        state["odd"] = near(base["odd"], seed)
        state["odd"][1000:1006] = torch.tensor([NAN, INF, -INF, -0.0, 1e-40, 0.0])
        state["flipped"] = -base["flipped"]
        state["unlike"] = noise(1200, seed=seed, size=100.0, dtype=torch.float16)
        state["f8"] = (base["f8"].float() * 1.1).to(torch.float8_e4m3fn)
        state["nan"] = near(base["nan"], seed).bfloat16()
        state["tied"] = state["emb"]
        tasks[task] = state
    tasks["b"]["emb"] = tasks["b"]["emb"][:50]
    tasks["b"]["tied"] = tasks["b"]["emb"]
    return base, tasks


@pytest.mark.parametrize("storage", ["embed", "reference", "bf16"])
def test_everything_comes_back_to_the_bit(storage: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = motley()
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="lossless", base_storage=storage)
    with tallstore.open(tmp_path / "zoo.tall", base=base if storage == "reference" else None) as zoo:
        for task, state in tasks.items():
            assert_same(zoo.state_dict(task), state)
            assert_same(zoo.state_dict(task, exact=True), state)
            weights = zoo.weights(task)
            assert all(same_bits(weights.get_tensor(name), tensor) for name, tensor in state.items())
            assert same_bits(weights.get_slice("emb")[3:50, 5:9], state["emb"][3:50, 5:9])
            out = zoo.export(task, tmp_path / f"out-{task}")
            exported = load_file(out / "model.safetensors")
            assert all(same_bits(exported[name], tensor) for name, tensor in state.items())
        report = zoo.verify(tasks)
        assert all(found.exact and found.relative_error == 0 for found in report.against.values())
        assert all(zoo.manifest.tasks[task].bit_for_bit for task in tasks)


VERIFY = """
import sys
from tallstore.cli import main
try:
    main(["verify", sys.argv[1]])
finally:
    assert "torch" not in sys.modules
"""


def test_codes_against_bases_of_every_type_are_checked_without_torch(tmp_path: Path, small_chunks: int) -> None:
    base, tasks = motley()
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="lossless")
    done = child(VERIFY, str(tmp_path / "zoo.tall"))
    assert not done.returncode, done.stderr
    assert "2 tasks" in done.stdout


def test_what_is_stored_how(tmp_path: Path, small_chunks: int) -> None:
    base, tasks = motley()
    with packed(base, tasks, tmp_path / "zoo.tall", quality="lossless") as zoo:
        found = kinds(zoo, "a")
        assert {found[name] for name in ("0", "emb", "ids", "codes", "odd", "flipped", "unlike", "f8")} == {"lossless"}
        assert found["frozen"] == "base"
        assert found["head"] == "private"
        assert found["nan"] == "private", "a NaN has no one image in another type"
        info = zoo.info()["tasks"]["a"]
        assert (info["relative_error"], info["cosine"], info["bit_for_bit"]) == (0.0, 1.0, True)


def test_a_model_and_a_switcher_get_the_bits(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(dtype=torch.bfloat16)
    model = nn.Module()
    for name, tensor in base.items():
        model.register_buffer(name.replace(".", "_"), tensor.clone())
    renamed = {task: {n.replace(".", "_"): t for n, t in state.items()} for task, state in tasks.items()}
    plain = {name.replace(".", "_"): tensor for name, tensor in base.items()}
    with packed(plain, renamed, tmp_path / "zoo.tall", quality="lossless") as zoo:
        own = {name: tensor.clone() for name, tensor in next(iter(renamed.values())).items()}
        heads = [name for name in own if name not in plain]
        for name in heads:
            model.register_buffer(name, own[name])
        for task, state in renamed.items():
            zoo.load_into(model, task)
            assert_same(dict(model.named_buffers()), state)
        switcher = zoo.switcher(model)
        for task in (*renamed, *renamed):
            switcher.switch(task)
            assert_same(dict(model.named_buffers()), renamed[task])
        switcher.switch(None)
        assert all(same_bits(dict(model.named_buffers())[name], tensor) for name, tensor in plain.items())


def test_what_is_added_is_lossless_too_and_nothing_else_changes(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(dtype=torch.bfloat16)
    names = list(tasks)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {name: tasks[name] for name in names[:-1]}, path, quality="lossless")
    tallstore.add(path, {names[-1]: tasks[names[-1]]})
    with tallstore.open(path) as zoo:
        for name in names:
            assert_same(zoo.state_dict(name), tasks[name])
            assert zoo.manifest.tasks[name].bit_for_bit
        zoo.verify(tasks)
    tallstore.remove(path, [names[0]])
    with tallstore.open(path) as zoo:
        assert zoo.tasks == tuple(names[1:])
        assert_same(zoo.state_dict(names[-1]), tasks[names[-1]])


def test_a_merge_is_that_of_the_originals(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(dtype=torch.float32)
    with packed(base, tasks, tmp_path / "zoo.tall", quality="lossless") as zoo:
        merged = zoo.merged("arithmetic", alpha=0.5)
    assert merged.report.approximate is None
    name = next(n for n, t in base.items() if t.ndim == 2)
    wanted = base[name] + 0.5 * torch.stack([state[name] - base[name] for state in tasks.values()]).sum(0)
    assert torch.allclose(merged[name], wanted, atol=1e-6)


def coded_size(zoo: Zoo, name: str) -> int:
    """Bytes of a tensor of task `t`."""
    found = zoo._decoder.task("t")[name].entry.coded
    assert found is not None
    return found.size


def test_it_is_never_larger_than_the_plain_codec(tmp_path: Path) -> None:
    base = {"w": noise(300, 300, dtype=torch.bfloat16), "z": noise(300, 300, seed=2, dtype=torch.bfloat16)}
    task = {"w": noise(300, 300, seed=9, size=50.0, dtype=torch.bfloat16), "z": torch.zeros(300, 300).bfloat16()}
    with packed(base, {"t": task}, tmp_path / "zoo.tall", quality="lossless", allow_distant=True) as zoo:
        assert_same(zoo.state_dict("t"), task)
        for name, tensor in task.items():
            plain = codecs.WHOLE["planes+zstd"].encode(tensor.reshape(-1).view(torch.uint8).numpy(), "BF16")
            assert coded_size(zoo, name) <= len(plain) + 1


def test_a_sparse_change_takes_a_tenth_of_a_bit(tmp_path: Path) -> None:
    base = {"w": noise(1000, 1000, size=0.02, dtype=torch.bfloat16)}
    words = base["w"].view(torch.int16).clone()
    few = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(1)) < 0.01
    words[few] += 1
    task = {"w": words.view(torch.bfloat16)}
    with packed(base, {"t": task}, tmp_path / "zoo.tall", quality="lossless") as zoo:
        assert_same(zoo.state_dict("t"), task)
        assert coded_size(zoo, "w") * 8 <= 0.10 * 1e6


def test_damage_is_found_by_tensor(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2, dtype=torch.bfloat16)
    tallstore.pack(base, tasks, tmp_path / "zoo", quality="lossless")
    task = next(iter(tasks))
    part = tmp_path / "zoo" / "tasks" / task / "mask.safetensors"
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    with tallstore.open(tmp_path / "zoo") as zoo, pytest.raises(DamagedError, match=r"tensor '.*' is damaged"):
        zoo.state_dict(task)


def test_info_verify_and_report_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tasks = tiny_zoo(2)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path, quality="lossless")
    for verb in ("info", "verify"):
        with pytest.raises(SystemExit, match="0"):
            main([verb, str(path)])
        assert "bit for bit" in capsys.readouterr().out
    with tallstore.open(path) as zoo:
        table = by_task(gather(zoo, masks=False))
    assert [cell.text for row in table.rows for cell in row].count("bit for bit") == 2


def test_lossless_is_a_quality_of_its_own(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    for options in ({"bits": 1.0}, {"recipe": "fit"}):
        with pytest.raises(OptionError, match="quality"):
            tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="lossless", **options)


def test_archives_without_it_keep_their_version(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)

    def version(zoo: Zoo) -> str:
        return zoo.manifest.version

    with packed(base, tasks, tmp_path / "a.tall") as zoo:
        assert version(zoo) == "1.0"
    with packed(base, tasks, tmp_path / "b.tall", quality="lossless") as zoo:
        assert version(zoo) == "1.1"
