"""The page as a file: whole, self-contained, escaped, readable; and how it gets there."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_support import EVERY, HARM, Outline, deep_zoo, edit, hostile, scored
from support import ROOT, RecordingStore, leftovers, nothing_dropped, thin_zoo, tiny_zoo

import tallstore
from tallstore.errors import DamagedError, MissingExtraError, OutputError, OutputExistsError
from tallstore.humanize import share, size
from tallstore.report.facts import gather
from tallstore.report.figures import FIGURES
from tallstore.report.theme import DARK, HEAT, LIGHT, contrast
from tallstore.stores import open_store
from tallstore.zoo import Zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored(tmp_path_factory.mktemp("scored") / "zoo")


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    with tallstore.open(folder) as zoo:
        return zoo.report(tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("hostile")
    with tallstore.open(hostile(home / "zoo <b onclick=alert(1)>")) as zoo:
        return zoo.report(home / "report.html").read_text(encoding="utf-8")


@pytest.fixture(params=["page", "harmed"])
def text(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_it_is_well_formed(text: str) -> None:
    found = Outline(text)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {f"#{i}" for i in ids} >= {str(a["href"]) for a in found.all("a")}
    pointed = {i for _, a in found.elements for i in str(a.get("aria-labelledby") or a.get("for") or "").split()}
    assert pointed <= set(ids)
    for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= set(re.findall(r'id="([^"]+)"', svg))


def test_it_names_its_parts_for_those_who_do_not_see_it(text: str) -> None:
    found = Outline(text)
    assert found.all("html")[0]["lang"] == "en"
    assert (
        len(found.all("h1")) == len(found.all("main")) == len(found.all("title")) - len(re.findall("<g><title>", text))
    )
    assert len(found.all("section")) == len(found.all("h2"))
    assert all(svg["role"] == "img" and len(str(svg["aria-label"])) > 20 for svg in found.all("svg"))
    assert all(th.get("scope") in {"col", "row"} for th in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert len(found.all("label")) == len(found.all("input"))
    assert all(a.get("tabindex") == "0" and a["aria-label"] for a in found.all("div") if a.get("class") == "scroll")


def test_every_figure_is_there_for_wide_and_for_narrow(page: str) -> None:
    assert [figure["data-figure"] for figure in Outline(page).all("figure")] == list(EVERY)
    for figure in re.findall(r"<figure .*?</figure>", page, re.DOTALL):
        wide, narrow = (ET.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", figure, re.DOTALL))
        for svg, width in ((wide, 800), (narrow, 350)):
            assert float(svg.get("width", "0")) <= width
            assert len(list(svg.findall(".//{*}path"))) > 6
            assert len(list(svg.findall(".//{*}text"))) > 3


def test_nothing_is_fetched_and_one_script_may_run(text: str) -> None:
    found = Outline(text)
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", re.sub(r"<svg .*?</svg>", "", text, flags=re.DOTALL))
    policy = next(str(a["content"]) for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-eval" not in policy


def test_what_a_stranger_wrote_is_text(harmed: str) -> None:
    found = Outline(harmed)
    assert len(found.all("script")) == 1
    assert found.all("img") == []
    shown = "".join(found.texts)
    assert shown.count(HARM) > 6
    assert "zoo <b onclick=alert(1)>" in shown
    assert "x" * 301 not in harmed
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ufffe]", harmed)
    assert "turn\ufffded\ufffd&lt;b&gt;" in harmed
    assert "Nothing was measured" not in shown
    assert "relative error" not in shown


def test_numbers_are_those_of_the_archive(page: str, folder: Path) -> None:
    with tallstore.open(folder) as zoo:
        info, masks = zoo.info(), zoo.mask_statistics()
        wholes = zoo.wholes("task-00")
    shown = "\n".join(Outline(page).texts)
    assert size(info["bytes"]["total"]) in shown
    assert size(info["checkpoints_bytes"]) in shown
    assert share(masks.catastrophic) in shown
    assert all(share(value) in shown for value in masks.layers["layer.1"].values())
    assert "95.0 %" in shown, "what the worst task kept"
    assert set(wholes) == {"head.weight", "net.norm.bias"}
    assert wholes["head.weight"].why == "the base has no such tensor"
    assert all(name in shown and whole.why in shown for name, whole in wholes.items())


def test_the_same_archive_gives_the_same_page(page: str, folder: Path, tmp_path: Path) -> None:
    with tallstore.open(folder) as zoo:
        assert zoo.report(tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert str(folder) not in page
    assert str(folder.parent.name) not in page


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: dict[str, str]) -> None:
    for ground in ("paper", "panel"):
        assert contrast(theme["ink"], theme[ground]) >= 7
        assert contrast(theme["muted"], theme[ground]) >= 4.5
    assert contrast(theme["masks"], theme["paper"]) >= 4.5, "links"
    for role in ("base", "vector", "masks", "private", "exact", "files", "none", "one", "some"):
        assert contrast(theme[role], theme["paper"]) >= 2.95, role
    for step in range(HEAT):
        assert contrast(theme[f"heat-ink-{step}"], theme[f"heat-{step}"]) >= 4.4, step
    rising = [contrast(theme[f"heat-{step}"], theme["paper"]) for step in range(HEAT)]
    assert rising == sorted(rising)
    assert len(set(LIGHT.values())) == len(LIGHT), "a colour stands for one role"


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_without_masks_no_mask_is_read(folder: Path, tmp_path: Path) -> None:
    store = RecordingStore(open_store(folder))
    with Zoo(store) as zoo:
        page = zoo.report(tmp_path / "report.html", masks=False, plots=tmp_path / "plots").read_text(encoding="utf-8")
    headers = {path: record.header_size for path, record in zoo.manifest.parts.items()}
    assert all(path == "tall.json" or stop <= (headers[path] or 0) for path, _, stop in store.ranges)
    assert [figure["data-figure"] for figure in Outline(page).all("figure")] == ["bytes", "tasks"]
    assert "make the report without --no-masks (masks=False)" in page
    assert leftovers(tmp_path / "plots") == ["bytes.png", "bytes.svg", "tasks.png", "tasks.svg"]


def test_a_base_that_is_only_named_is_not_needed_to_count_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where changes are dropped, it is what tells which elements are another."""
    nothing_dropped(monkeypatch)
    tallstore.pack(*deep_zoo(2), tmp_path / "zoo", base_storage="reference")
    with tallstore.open(tmp_path / "zoo") as zoo:
        page = zoo.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The base is not in the archive" in page
    assert "referenced, not in the archive" in page


def test_a_base_that_is_only_named_is_asked_for_where_it_tells_what_moved(tmp_path: Path) -> None:
    """The page says so, and has all else; with the base it has the figures, too."""
    base, tasks = thin_zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo", base_storage="reference")
    with tallstore.open(tmp_path / "zoo") as zoo:
        page = zoo.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "holds no base, only references it: give it with base=… (--base)" in page
    assert 'data-figure="tasks"' in page
    assert 'data-figure="layers"' not in page
    with tallstore.open(tmp_path / "zoo", base=base) as zoo:
        page = zoo.report(tmp_path / "report.html", overwrite=True).read_text(encoding="utf-8")
    assert 'data-figure="layers"' in page


def test_of_one_task_and_of_none_that_was_measured(tmp_path: Path) -> None:
    tallstore.pack(*tiny_zoo(1), tmp_path / "zoo")
    with tallstore.open(tmp_path / "zoo") as zoo:
        facts = zoo.info()
    edit(tmp_path / "zoo", measured={})
    with tallstore.open(tmp_path / "zoo") as zoo:
        page = zoo.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "One fine-tuned model and its base" in page
    assert "one task overlaps with nothing" in page
    assert size(facts["checkpoints_bytes"]) in page, "counted, where nobody says it"
    assert 'data-figure="tasks"' not in page


@pytest.mark.parametrize("path", sorted((ROOT / "spec" / "vectors" / "valid").iterdir()), ids=lambda path: path.name)
def test_every_archive_that_the_format_allows_can_be_drawn(path: Path) -> None:
    archive = next(path.glob("archive*"))
    with tallstore.open(archive) as zoo:
        facts = gather(zoo, masks=True)
    for name, figure in FIGURES.items():
        ET.fromstring(figure.draw(facts, 350).inline(name))
    assert {row.name for row in facts.wholes} == {n for task in zoo.tasks for n in zoo.wholes(task)}


def test_many_tasks_make_a_picture_of_dots(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    tallstore.pack(base, {f"t{n}": tasks["a"] for n in range(52)}, tmp_path / "zoo")
    with tallstore.open(tmp_path / "zoo") as zoo:
        page = zoo.report(tmp_path / "report.html", plots=tmp_path / "plots").read_text(encoding="utf-8")
    overlap = re.search(r'<figure data-figure="overlap">.*?</figure>', page, re.DOTALL)
    assert overlap is not None
    assert overlap[0].count("<image ") == 4
    assert overlap[0].count("only-dark") == overlap[0].count("only-light") == 2
    alone = (tmp_path / "plots" / "overlap.svg").read_text()
    assert alone.count("<image ") == 1
    assert "And 326 pairs" in page


# How it gets there.


def test_plots_are_svg_and_png(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    with tallstore.open(folder) as zoo:
        zoo.report(tmp_path / "report.html", plots=tmp_path / "plots")
    assert leftovers(tmp_path / "plots") == sorted(f"{name}.{kind}" for name in EVERY for kind in ("png", "svg"))
    for name in EVERY:
        svg = ET.parse(tmp_path / "plots" / f"{name}.svg").getroot()
        assert len(svg.get("aria-label", "")) > 20
        assert len(list(svg.findall(".//{*}path"))) > 10
        assert not list(svg.findall(".//{*}text")), "letters are shapes"
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height) or ()) > 20


@pytest.mark.parametrize("where", ["report.html", "plots"])
def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_ours(
    where: str, folder: Path, tmp_path: Path
) -> None:
    def write(**how: bool) -> None:
        with tallstore.open(folder) as zoo:
            zoo.report(tmp_path / "report.html", plots=tmp_path / "plots", masks=False, **how)

    write()
    before = leftovers(tmp_path)
    with pytest.raises(OutputExistsError, match=r"report\.html: is there already; .*--overwrite"):
        write()
    write(overwrite=True)
    assert leftovers(tmp_path) == before
    target = tmp_path / where
    if target.is_dir():
        (target / "thesis.tex").write_text("precious")
    else:
        target.write_text("<html>precious</html>")
    after = leftovers(tmp_path)
    with pytest.raises(OutputExistsError, match=r"is not a (report|folder of plots), so it is not overwritten"):
        write(overwrite=True)
    assert leftovers(tmp_path) == after


def test_a_folder_of_plots_is_looked_at_before_any_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine").touch()
    store = RecordingStore(open_store(folder))
    with Zoo(store) as zoo, pytest.raises(OutputExistsError):
        zoo.report(tmp_path / "report.html", plots=tmp_path / "plots")
    assert {path for path, _, _ in store.ranges} == {"tall.json"}
    assert leftovers(tmp_path) == ["plots", "plots/mine"]


def test_damage_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(folder, tmp_path / "zoo")
    part = tmp_path / "zoo" / "tasks" / "task-01" / "mask.safetensors"
    data = bytearray(part.read_bytes())
    data[-9] ^= 4
    data[8 + int.from_bytes(data[:8], "little") + 3] ^= 4
    part.write_bytes(data)
    with tallstore.open(tmp_path / "zoo") as zoo, pytest.raises(DamagedError, match="task-01"):
        zoo.report(tmp_path / "report.html", plots=tmp_path / "plots")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["zoo"]


def test_a_place_that_cannot_be_written_is_an_output_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with tallstore.open(folder) as zoo, pytest.raises(OutputError, match="a part of the path is a file"):
        zoo.report(tmp_path / "file" / "report.html", masks=False)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "scipy"])
def test_without_the_extra_its_command_is_named(
    package: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with tallstore.open(folder) as zoo:
        for use in (lambda: zoo.report(tmp_path / "r.html"), lambda: tallstore.report.card_picture(zoo)):
            with pytest.raises(MissingExtraError, match=rf'{package}: pip install "tallstore\[report\]"'):
                use()
    assert leftovers(tmp_path) == []


# The card.


def test_the_card_s_picture_reads_the_manifest_alone(folder: Path) -> None:
    import io

    from PIL import Image

    store = RecordingStore(open_store(folder))
    with Zoo(store) as zoo:
        png, svg = tallstore.report.card_picture(zoo), tallstore.report.card_picture(zoo, kind="svg")
        again = tallstore.report.card_picture(zoo)
    assert {path for path, _, _ in store.ranges} == {"tall.json"}
    assert png == again
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (2000, 1100)
    label = ET.fromstring(svg).get("aria-label", "")
    assert "3 fine-tuned models" in label
    assert "Score kept: 98.2 % on average, 95.0 % at worst" in label


def test_the_card_of_a_hostile_archive_is_a_picture(tmp_path: Path) -> None:
    with tallstore.open(hostile(tmp_path / "zoo")) as zoo:
        svg = ET.fromstring(tallstore.report.card_picture(zoo, kind="svg"))
    assert "Nothing was measured" in svg.get("aria-label", "")
    assert not list(svg.findall(".//{*}script"))
