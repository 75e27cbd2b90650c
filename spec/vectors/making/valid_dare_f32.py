"""Valid vectors of version 1.4: float32 tensors of whose changes a share is kept, behind a product and without one."""

from __future__ import annotations

import numpy as np

from tallstore.codecs import LOSSLESS
from tallstore.kernels.dare import Sampling

from .build import CHUNK, sampled, spans, whole
from .numbers import Tensor, bits, converted, floats, noise, noise_bytes, wide
from .valid import Case, case
from .valid_columns import CHUNKS, Chunk, by_chunks
from .valid_columns import SHAPE as OF_CHUNKS
from .valid_dare import LEVELS, PARENT, SHAPE, back, drawing, moved, numbers
from .valid_low_rank import SHAPE as OF_ROWS
from .valid_low_rank import Product, as_array, cut, item, last_rank, of_rank, two_chunks
from .valid_relatives import Family

ODD = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 1, 0x80000001, 0x3F800000, 0xBF800000, 0x7F7FFFFF]
"""Bits of float32: zeros, infinities, NaN, subnormal numbers, one, the largest; and a NaN that is not quiet."""
ODD += [0x00800000, 0x7F800001]
ONE = Sampling(255, np.full(16, 29999, np.uint16), np.full(16, 0x3A55, np.uint16))
"""As writers have it: all elements are of level 0."""


def tuned(base: Tensor, seed: str) -> Tensor:
    """Changes of any size, from next to nothing to many steps of `ONE`."""
    change = noise(seed, base.numel, 108, 122)
    return Tensor("F32", base.shape, (wide("F32", base.data, "F32") + change).astype("<f4").tobytes())


@case
def dare_f32() -> Case:
    """Codec `dare`, float32, modes 0 and 2: one level as writers have it, all of them, several chunks, rows, a start."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    base = family.base["w"] = numbers("F32", "dare F32", SHAPE)
    plans = {name: drawing("F32", levels) for name, levels in LEVELS.items()}
    plans |= {"first level alone": ONE, "last level alone": ONE._replace(low=0)}
    for name, plan in plans.items():
        own = moved(base, f"dare F32 {name}") if name in LEVELS else tuned(base, f"dare F32 {name}")
        _sampled(family, "a", name, own, base, plan, 0xFFFFFB00)
    nearest = ONE._replace(nearest=True)  # a writer's own matter: it decodes as any other chunk
    coded = sampled(own := tuned(base, "dare F32 nearest"), base, "w", nearest)
    assert coded[1] != sampled(own, base, "w", ONE)[1]
    family.put("a", "nearest", coded, _by_steps(own, base))
    _mode_0(family, base)
    for name, dtype in (("of BF16", "BF16"), ("of F64", "F64")):
        other = family.base[name] = floats(dtype, noise(f"dare F32 {name}", base.numel, 110, 132), SHAPE)
        start = Tensor("F32", SHAPE, converted(other, "F32"))
        _sampled(family, "a", name, tuned(start, f"dare F32 own {name}"), start, ONE, 7, base=name)
    for name, more in (("first level alone", {"start": []}), ("some", {"start": [1]})):
        before = family.decoded["a"][name]
        _sampled(family, "b", name, tuned(before, f"dare F32 onward {name}"), before, ONE, 99, **more)
        if more["start"]:
            del family.items["b"][name][0]["base"]
    head = tuned(base, "dare F32 rows")
    more_rows = Tensor("F32", (2, SHAPE[1]), noise_bytes("dare F32 more rows", 8 * SHAPE[1]))
    facts, chunks = sampled(head, base, "w", ONE, 5)
    wanted = Tensor("F32", (SHAPE[0] + 2, SHAPE[1]), back(head, base, ONE, 5).data + more_rows.data)
    family.put("a", "rows", (facts | {"shape": list(wanted.shape), "rows": SHAPE[0]}, chunks), wanted)
    family.privates.setdefault("a", {})["rows"] = whole(more_rows)
    archive = family.archive()
    archive.since("1.4", "mask", "relative")
    about = "kind sampled with codec dare in float32, modes 0 and 2: one level and all, NaN, other bases, rows, a start"
    return Case(about, archive, family.decoded, file=True)


def _sampled(
    family: Family, task: str, name: str, own: Tensor, before: Tensor, plan: Sampling, first: int, **more: object
) -> None:
    """A tensor in mode 2."""
    facts, coded = sampled(own, before, "w", plan, first)
    assert all(each[0] == 2 for each in coded or ())
    family.put(task, name, (facts | more, coded), back(own, before, plan, first))


def _by_steps(own: Tensor, base: Tensor) -> Tensor:
    """What comes back of `ONE` where changes of a step and more are rounded to the nearest multiple."""
    change = wide("F32", own.data, "F32") - wide("F32", base.data, "F32")
    width = float(wide("BF16", ONE.widths.tobytes(), "F32")[0])
    step = width * 30000 / 65536
    half = np.rint(np.abs(change).astype(float) / step)
    whole_steps = np.where(np.abs(change) >= step, np.copysign(half * step, change), change).astype(np.float32)
    return back(floats("F32", wide("F32", base.data, "F32") + whole_steps, base.shape), base, ONE)


def _mode_0(family: Family, base: Tensor) -> None:
    """Numbers that are not computed with, and others by every mode of `lattice`."""
    odd = family.base["odd"] = bits("F32", ODD * 50, (65, 10))
    own = bits("F32", (ODD[5:] + ODD[:5]) * 50, (65, 10))
    coded = sampled(own, odd, "odd", ONE)
    assert [each[0] for each in coded[1] or ()] == [0]
    family.put("a", "mode 0", coded, own)
    near = moved(base, "dare F32 mode 0")
    chunks = [
        b"\0" + LOSSLESS["lattice"].encode(as_array(cut(near, a, b)), as_array(cut(base, a, b)), "F32")
        for a, b in spans(base.numel)
    ]
    assert {each[1] for each in chunks} == {3}
    family.put("a", "mode 0 of few units", item("w", near, chunks), near)
    family.put("a", "mode 0 of none", item("w", base, [b"\0\0"] * len(chunks)), base)


@case
def low_rank_f32() -> Case:
    """Codec `dare`, float32, mode 3: columns of a chunk's own and the first one's, sums of 0, NaN, what is too large."""
    family = Family()
    family.made_of("b", ["a"], PARENT)
    base = family.base["F32"] = numbers("F32", "low rank F32", OF_ROWS)
    two_chunks(family, "a", "one", base, (0,), 2.0**-22)
    two_chunks(family, "a", "ten", base, (0, 1, 2, 3, 4, 4, 0, 2, 1, 3), 2.0**-22)
    two_chunks(family, "a", "few", base, (4, 0, 1), 1.1 * 2.0**-18, most=3, modes=(2, 1))
    two_chunks(family, "a", "all", base, (1, 2), 1.7 * 2.0**-22, lossless=True)
    two_chunks(family, "b", "one", family.decoded["a"]["one"], (3, 0), 2.0**-24, start=[])
    for task in family.items.values():
        for facts, _ in task.values():
            facts["base"] = "F32"
    last_rank(family, "F32")
    odd = family.base["odd"] = bits("F32", ODD * 50, (650,))
    for what, scale in (("added", 0.75), ("too large", 3e38)):
        product = of_rank("low rank odd F32", 650, 23, 9, (2, 0, 1), scale, most=1 if scale < 1 else 127)
        due = product.plus(odd)
        family.put("a", f"odd, {what}", item("odd", due, [product.told(after=b"\0\0")]), due)
    nothing = Product(1.0, (0,), np.zeros((1, 60), np.int64), np.ones((1, 25), np.int64))
    family.put("a", "nothing", item("F32", base, [nothing.told((0, 2), b"\0\0")], 2048), base)
    long = family.base["columns"] = numbers("F32", "columns F32", OF_CHUNKS)
    by_chunks(family, "a", "columns", long, CHUNKS)
    again = CHUNKS[:2] + CHUNKS[1:2] * 3 + CHUNKS[5:]
    by_chunks(family, "b", "columns", family.decoded["a"]["columns"], again, start=[])
    full = family.base["full"] = numbers("F32", "columns full F32", (32, 64))
    by_chunks(family, "a", "full", full, (Chunk([1] * 64, with_columns=True), Chunk([0, 1] * 32)))
    _odd_first(family)
    archive = family.archive()
    archive.since("1.4", "mask", "relative")
    about = (
        "codec dare in float32, mode 3: columns of a chunk's own and the first one's, sums of 0, NaN, both modes behind"
    )
    return Case(about, archive, family.decoded, file=True)


def _odd_first(family: Family) -> None:
    """A first chunk with numbers that nothing may be added to: its rows are all 0, and it tells columns all the same."""
    name, width = "odd first", 33
    head = bits("F32", (ODD * CHUNK)[:CHUNK])
    tail = numbers("F32", f"columns {name}", (476,))
    family.base[name] = Tensor("F32", (1500,), head.data + tail.data)
    own = bits("F32", ((ODD[5:] + ODD[:5]) * CHUNK)[:CHUNK])
    later = of_rank(f"columns {name}", tail.numel, width, CHUNK % width, (2, 0), 2.0**-24)
    first = Product(2.0**-24, (0, 1), np.zeros((2, -(-CHUNK // width)), np.int64), later.v)
    assert first.plus(head) == head
    rest = b"\0" + LOSSLESS["lattice"].encode(as_array(own), as_array(head), "F32")
    due = Tensor("F32", (1500,), own.data + later.plus(tail).data)
    coded = [first.told(after=rest), later.told(after=b"\0\0", with_columns=False)]
    family.put("a", name, item(name, due, coded), due)
