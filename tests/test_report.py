"""`cct report`: the paper beside ours in Markdown, in one page that needs nothing else, and in figures."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from cct import recipes
from cct.cli import main
from cct.reports import figures, html, markdown, results, summary
from cct.reports.figures import COLORS


def publish(folder, recipe, last, *, seed=42, epochs=310, finished=True, changes="", target=None):
    """A run of `epochs` epochs that rises to `last`."""
    run = folder / "tmp" / "-".join([recipe, *changes.split()]) / f"seed-{seed}"
    run.mkdir(parents=True)
    with open(run / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("epoch", "test_top1", "ema_top1", "seconds"))
        writer.writerows((e, last * e / epochs / 100, 0.5, 3.0) for e in range(1, epochs + 1))
    session = {"machine": "a <machine>", "versions": "torch 2", "commit": "abc"}
    record = {
        "recipe": recipe,
        "changes": changes,
        "seed": seed,
        "command": f"cct train -c {recipe}",
        "planned": 310,
        "target": target,
    }
    results.publish(run, {**record, "finished": finished, "sessions": [session]}, folder)


@pytest.fixture
def folder(tmp_path):
    """Results: three seeds of one recipe, one run with changes, one that is not finished."""
    for seed, last in ((42, 96.0), (43, 97.0), (44, 95.9)):
        publish(tmp_path, "cct_7_3x1-cifar10", last, seed=seed, epochs=3)
    publish(tmp_path, "cct_2_3x2-cifar10", 72.66, epochs=5, changes="epochs=5")
    publish(tmp_path, "cvt_7_4-mnist", 99.0, epochs=2, finished=False)
    return tmp_path


def cell_of(table, row, dataset):
    return table.rows[row][dataset]


def test_what_stands_in_a_cell(folder):
    tables = {table.key: table for table in summary.tables(results.records(folder))}
    assert list(tables)[:3] == ["1", "2", "3"] and "figure7" in tables
    best = cell_of(tables["1"], "CCT-7/3x1", "cifar10")
    assert (best.printed, best.value, best.remark, best.difference) == ("96.53", "96.30 ± 0.61", "", "\N{MINUS SIGN}0.23")
    changed = cell_of(tables["1"], "CCT-2/3x2", "cifar10")
    assert (changed.value, changed.remark, changed.difference) == ("72.66", "with epochs=5", "")
    assert cell_of(tables["11"], "CVT-7/4", "mnist").remark == "epoch 2 of 310"
    not_run, cited = cell_of(tables["1"], "CVT-7/4", "cifar10"), cell_of(tables["1"], "ResNet18", "cifar10")
    assert (not_run.ours, not_run.recipe, cited.ours, cited.recipe) == (None, True, None, False)
    assert cell_of(tables["2"], "CCT-7/3x1, 300 epochs", "cifar10").value == best.value
    assert (tables["1"].run, tables["1"].runnable) == (3, len(recipes.cells(table="1")))
    assert tables["1"].sizes["CCT-7/3x1"] == ("3.76", "1.19")
    assert tables["figure5"].kinds == ("ours",) and tables["1"].kinds == ("paper", "ours")
    assert list(tables["figure5"].rows)[:3] == ["CCT-7/3x2 at 16", "CCT-7/3x2 at 24", "CCT-7/3x2 at 32"]


def test_every_recipe_cell_is_a_printed_one():
    """No cell of a recipe stands beside the table by a slip in its name, and each value is the printed one."""
    for table in summary.tables([]):
        for cell in recipes.cells(table=table.key):
            place = cell_of(table, cell.row, cell.dataset)
            assert place.recipe and (cell.value is None) == (place.printed == "")
            assert cell.value is None or float(place.printed) == cell.value


def test_time_to_a_target(tmp_path):
    for seed, epochs in ((42, 40), (43, 42)):
        publish(tmp_path, "cifar10-80-cpu", 80.0, seed=seed, epochs=epochs, target=80)
    tables = {table.key: table for table in summary.tables(results.records(tmp_path))}
    cell = cell_of(tables["claims"], "CCT on a Ryzen 9 5900X", "cifar10")
    assert (cell.value, cell.time, cell.remark, cell.difference) == ("80.00 ± 0.00", "80 % after 2.05 ± 0.07 min", "", "")
    assert tables["speed"].rows["cifar10-80-cpu"]["cifar10"].time == cell.time and tables["speed"].kinds == ("ours",)
    assert "<small>80 % after 2.05 ± 0.07 min</small>" in html.render(list(tables.values()), [], {})
    assert "**80.00 ± 0.00** (80 % after 2.05 ± 0.07 min)" in markdown.render(list(tables.values()), [], {})


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and keeps what could ask for another file."""

    VOID = frozenset(("meta", "br", "img", "link", "input"))

    def __init__(self, text):
        super().__init__()
        self.open, self.asks, self.tags, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [] if tag in self.VOID else [tag]
        for name, value in attributes:
            self.ids += [value] if name == "id" else []
            if name in ("src", "href", "xlink:href", "srcset", "data") and not value.startswith("#"):
                self.asks.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open = self.open if tag in self.VOID else self.open[:-1]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def test_report(folder, capsys):
    assert main(["report", "--results", str(folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    report = folder / "report"
    names = {f"{kind}-{name}.png" for kind in ("learning-curves", "accuracy-time") for name in ("cifar10", "mnist")}
    assert {path.name for path in report.iterdir()} == {"report.md", "report.html", "accuracy-size.png", *names}
    assert all(Image.open(report / name).size[0] > 700 for name in names)
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "| CCT-7/3x1 | 3.76 | 96.53 | **96.30 ± 0.61** | 80.92 | not run |" in text
    assert "| CCT-2/3x2 | 0.28 | 89.75 | **72.66** (with epochs=5) |" in text
    assert all((report / name).is_file() for name in re.findall(r"!\[.*?\]\((.*?)\)", text))
    page = (report / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.open == [] and parsed.asks == [] and "script" not in parsed.tags
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.tags.count("svg") == 5 and "prefers-color-scheme: dark" in page and "a &lt;machine&gt;" in page
    assert '<td class="first">96.53</td><td class="ours">96.30 ± 0.61<small>\N{MINUS SIGN}0.23</small></td>' in page
    assert '<td class="first">90.27</td><td class="none">\N{EN DASH}</td>' in page and ">not run</td>" in page
    assert not re.search("#(0072b2|222222)", page.partition("</style>")[2], re.IGNORECASE)  # colours follow the page


def test_a_note_stands_beside_the_commit(tmp_path, capsys):
    """In tables, page and Markdown; and it stays when its run is published again, not when another one is."""
    publish(tmp_path, "cct_2_3x2-cifar10", 72.66, epochs=5)
    path = tmp_path / "runs" / "cct_2_3x2-cifar10" / "seed-42.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "with <other> settings"}))
    rows = results.table_rows("1", results.cells("1"), results.records(tmp_path))
    assert [row["note"] for row in rows if row["state"] == "done"] == ["with <other> settings"]
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "| abc (with <other> settings) |" in (tmp_path / "report" / "report.md").read_text()
    assert "abc<small>with &lt;other&gt; settings</small></td>" in (tmp_path / "report" / "report.html").read_text()
    run, record = tmp_path / "tmp" / "cct_2_3x2-cifar10" / "seed-42", json.loads(path.read_text())
    del record["note"]
    results.publish(run, record, tmp_path)
    assert json.loads(path.read_text())["note"] == "with <other> settings"
    record["sessions"] = [{**record["sessions"][0], "began": "later"}]
    results.publish(run, record, tmp_path)
    assert "note" not in json.loads(path.read_text())


def test_figures_4_to_7_have_a_line_for_each_model(tmp_path, capsys):
    publish(tmp_path, "cct_7_3x2-cifar10", 95.0, epochs=3)
    publish(tmp_path, "cct_7_3x2-figure4-1000", 80.0, epochs=3)
    publish(tmp_path, "cct_7_3x2-figure4-500", 70.0, epochs=2, finished=False)
    publish(tmp_path, "cct_7_3x2_none-cifar10", 94.0, epochs=3)
    tables = summary.tables(results.records(tmp_path))
    drawn = figures.by_number(tables)
    assert list(drawn) == ["Figure 4", "Figure 5", "Figure 6", "Figure 7"]
    [axes] = drawn["Figure 4"].axes
    assert [(line.get_label(), line.get_xydata().tolist()) for line in axes.lines] == [
        ("CCT-7/3x2, CIFAR-10", [[500, 70], [1000, 80], [5000, 95]])
    ]
    assert "not finished" in axes.get_xlabel() and "not finished" not in drawn["Figure 5"].axes[0].get_xlabel()
    assert {line.get_label() for line in drawn["Figure 6"].axes[0].lines} == {
        f"CCT-7/3x2 {kind}, CIFAR-10" for kind in ("learnable", "none")
    }
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "report" / "figure4.png").size[0] > 700
    assert "![Figure 4](figure4.png)" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_report_of_nothing(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "new" / "page")]) == 0
    page = (tmp_path / "new" / "page" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"\D0 of \d{3} numbers", page) and "Nothing was run yet" in page and 'class="ours"' not in page
    assert "Nothing was run yet" in (tmp_path / "new" / "page" / "report.md").read_text(encoding="utf-8")


def test_figures_show_every_line(folder):
    runs = results.records(folder)
    curves = figures.learning_curves(runs)
    assert list(curves) == ["cifar10", "mnist"]
    (axes,) = curves["cifar10"].axes
    assert [line.get_label() for line in axes.lines] == [
        "cct_7_3x1 #43  97.00 %", "cct_7_3x1  96.00 %", "cct_7_3x1 #44  95.90 %", "cct_2_3x2 (epochs=5)  72.66 %",
    ]  # fmt: skip
    assert axes.lines[3].get_xydata()[-1] == pytest.approx((5, 72.66)) and axes.get_ylim()[0] < 72.66
    (time,) = figures.by_time(runs)["cifar10"].axes
    assert time.lines[0].get_xydata()[-1] == pytest.approx((9.0, 97.0))
    (size,) = figures.by_size(summary.tables(runs)).axes
    rings = {entry.get_label(): entry.get_offsets().tolist() for entry in size.collections if "run" in entry.get_label()}
    assert rings["run here"] == [[3.76, 96.3]] and rings["run here, shorter or not finished"] == [[0.28, 72.66]]
    for seed in range(45, 50):
        publish(folder, "cct_7_3x1-cifar10", 90.0, seed=seed, epochs=3)
    (axes,) = figures.learning_curves(results.records(folder))["cifar10"].axes
    assert len(axes.lines) == len(COLORS) and f"the best {len(COLORS)} of 9 runs" in axes.get_title(loc="left")


def test_long_names_leave_room_for_the_lines(folder):
    runs = [
        {**run, "changes": "warmup_epochs=1 cooldown_epochs=1 reprob=0.25 mixup_off_epoch=6"} for run in results.records(folder)
    ]
    figure = figures.learning_curves(runs)["cifar10"]
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    width, height = figure.canvas.get_width_height()
    box, names = axes.get_window_extent(), legend.get_window_extent()
    assert box.width > 0.8 * width and names.width <= width and names.y1 < box.y0 and box.height > 0.4 * height
    assert axes.get_ylim()[1] <= 100


def test_text_is_escaped():
    table = summary.Table("1", ["cifar10"], {"<b> | x": {"cifar10": summary.Cell("1.0", True, None)}}, {})
    assert "&lt;b&gt; | x" in html.render([table], [], {}) and "<b> \\| x |" in markdown.render([table], [], {})


def test_mistakes(folder, capsys, monkeypatch):
    def fails(*words):
        assert main(["report", *map(str, words)]) in (1, 2)
        text = capsys.readouterr().err
        assert "Traceback" not in text and len(text.splitlines()) == 1, text
        return text

    assert "--results nowhere: no such folder" in fails("--results", "nowhere")
    record = folder / "runs" / "cct_2_3x2-cifar10-epochs=5" / "seed-42.json"
    assert "cannot make this folder" in fails("--results", folder, "--output", record)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", full)
        assert "the disk is full" in fails("--results", folder)
    assert not list((folder / "report").iterdir())
    for damage in ("epoch,test_top1,seconds\n1,half,3\n", "epoch,test_top1,seconds\n1,0.5\n"):
        record.with_suffix(".csv").write_text(damage)
        assert "seed-42.csv: cannot be read as the metrics of a run" in fails("--results", folder)
    whole = json.loads(record.read_text())
    for key, value in [
        *(("changes", 5), ("seed", "x"), ("last", None), ("ema", None), ("settings", []), ("at", {"16": "x"}), ("note", 5)),
        *(("sessions", wrong) for wrong in (5, [5], [{"machine": []}])),
    ]:
        record.write_text(json.dumps({**whole, key: value}))
        assert f"seed-42.json: {key} cannot be {json.dumps(value)}; remove it" in fails("--results", folder)
    record.write_text(json.dumps({**whole, "sessions": [{}]}))
    assert "seed-42.json: lacks machine, versions, commit; remove it" in fails("--results", folder)
    record.write_text(json.dumps(whole))
    record.with_suffix(".csv").unlink()
    assert "seed-42.csv: cannot be read as the metrics of a run" in fails("--results", folder)
    record.write_text('{"recipe": "x", "seed": 1}')
    assert "seed-42.json: lacks changes, command, planned" in fails("--results", folder)
    record.write_text("{")
    assert "seed-42.json: cannot be read" in fails("--results", folder)
