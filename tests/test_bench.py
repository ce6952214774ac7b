"""The benchmark harness: the published form is the model, wrong results are not timed, rows become a table."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import record, roof, table, timing
from bench.peers import Missing
from bench.published import Published
from bench.session import Session
from cct.models import create_model


@pytest.mark.parametrize("sdpa", [False, True])
@pytest.mark.parametrize("name", ["cct_2_3x2_32", "cct_7_7x2_224", "cvt_2_4_32", "vit_lite_2_4_32_sine"])
def test_published_form_is_the_model(name, sdpa):
    size = {} if name != "cct_7_7x2_224" else {"img_size": 64}
    model = create_model(name, fused=False, **size).eval().double()
    x = torch.randn(2, 3, *model.img_size, dtype=torch.float64)
    torch.testing.assert_close(Published(model, sdpa)(x), model(x), rtol=1e-9, atol=1e-9)


def test_published_form_drops_paths_like_the_model():
    model = create_model("cct_2_3x2_32", fused=False, attention_dropout=0.0, stochastic_depth=0.5).train()
    assert Published(model).training
    x = torch.ones(400, 3, 4, 4)
    values, counts = Published(model)._drop_path(x, 0.25).flatten(1)[:, 0].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))
    assert 60 <= counts[0] <= 140  # of 400 with p = 0.25: more than four standard deviations


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(roof, "measure", lambda *_: roof.Roof(1e12, "none", 1e11))
    monkeypatch.setenv("CCT_MACHINE", "here")
    record.machine.cache_clear()
    yield Session(rounds=3, min_time=1e-4, threads=torch.get_num_threads(), peers=[], folder=tmp_path)
    record.machine.cache_clear()


KEY = {"kind": "op", "what": "add", "direction": "forward", "device": "cpu", "dtype": "float32", "batch": 4}


def absent():
    raise Missing("not installed")


def check(name, call):
    assert call() == 3, "wrong sum"


def test_session_times_only_right_results(session, tmp_path):
    peers = {"ours": lambda: lambda: 1 + 2, "wrong": lambda: lambda: 1 + 3, "slow": lambda: lambda: sum([1] * 3), "no": absent}
    session.row(KEY, peers, check, flops=1, moved=12)
    (line,) = (tmp_path / "here.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert list(row["peers"]) == ["ours", "slow"] and row["peers"]["ours"]["rounds"] == 3
    assert row["missing"] == {"wrong": "left out: wrong sum", "no": "not installed"}
    assert row["machine"]["name"] == "here" and row["versions"]["torch"] == torch.__version__
    with pytest.raises(AssertionError, match="wrong sum"):
        session.row(KEY, {"ours": lambda: lambda: 4}, check, flops=1, moved=12)


def test_a_peer_that_compiles_for_minutes_is_in_chosen_rows_only(session):
    builders = {"ours": lambda: lambda: 3, "max-autotune": lambda: lambda: 3}
    for slow in (False, True):
        session.row(KEY, builders, check, flops=1, moved=12, slow=slow)
    session.chosen = ["max-autotune"]
    session.row(KEY, builders, check, flops=1, moved=12)
    assert ["max-autotune" in row["peers"] for row in session.rows] == [False, True, True]
    assert "--peers max-autotune" in session.rows[0]["missing"]["max-autotune"]


def test_peers_that_were_not_asked_for_are_named_and_run_when_they_are(session, tmp_path):
    builders = {name: lambda: lambda: 3 for name in ("ours", "near", "far")}
    session.chosen = ["near"]
    session.row(KEY, builders, check, flops=1, moved=12)
    assert session.rows[0]["missing"] == {"far": record.NOT_ASKED}
    assert f"  {record.NOT_ASKED}: far" in list(record.lines(session.rows[0]))
    again = Session(rounds=3, min_time=1e-4, threads=session.threads, peers=["far"], folder=tmp_path, resume=True)
    again.begin(KEY, builders)
    again.chosen = ["near"]
    with pytest.raises(pytest.skip.Exception):
        again.begin(KEY, builders)


def test_the_first_call_after_a_rest():
    calls = []
    times = timing.after_rest({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, min_time=1, rest=0.01)
    assert calls == ["a", "b"] * 3 and times["a"].rounds == 2 and times["b"].median < 0.01


def test_resume_skips_what_this_commit_has_recorded(session, tmp_path):
    session.row(KEY, {"ours": lambda: lambda: 3, "no": absent}, check, flops=1, moved=12)
    again = Session(rounds=3, min_time=1e-4, threads=session.threads, peers=[], folder=tmp_path, resume=True)
    with pytest.raises(pytest.skip.Exception, match="recorded"):
        again.begin(KEY, ["ours", "no"])
    again.begin(KEY, ["ours", "new"])  # a peer that was not tried
    again.begin(KEY | {"batch": 5}, ["ours"])
    session.begin(KEY, ["ours"])  # without --resume
    line = json.loads((tmp_path / "here.jsonl").read_text()) | {"commit": "another"}
    (tmp_path / "here.jsonl").write_text(json.dumps(line))
    Session(rounds=3, min_time=1e-4, threads=session.threads, peers=[], folder=tmp_path, resume=True).begin(KEY, ["ours"])
    again.minutes = 0
    with pytest.raises(pytest.skip.Exception, match="after 0 minutes"):
        again.begin(KEY | {"batch": 5}, ["ours"])


def make_row(ours, peer, **more):
    peers = {
        n: {"median": m, "p20": m, "p80": m, "rounds": 1} for n, m in {"ours": ours, "eager": peer, "compile": 9.0}.items()
    }
    work, top = {"flops": 1e9, "bytes": 1e6}, {"flops": 1e11, "method": "mm", "bytes": 1e9}
    return record.make(KEY | {"threads": 2} | more, peers, {"openvino": "not installed"}, work=work, roof=top)


def test_lines_name_lost_and_missing_peers():
    text = "\n".join(record.lines(make_row(0.04, 0.02)))
    assert "LOST to eager" in text and "openvino        not installed" in text
    assert "25% of the roof" in text  # 1e9 operations at 1e11 a second, in 0.04 s
    assert "LOST" not in "\n".join(record.lines(make_row(0.01, 0.02)))


def test_table_takes_the_newest_line_of_a_row(tmp_path, monkeypatch):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    for row in (make_row(0.04, 0.02), make_row(0.01, 0.02), make_row(0.5, 1.0, kind="inference", what="CCT", batch=64)):
        record.append(row, results)
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["table", "--results", str(results), "--readme", str(readme), "--chart", str(tmp_path / "chart.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    table.main()
    page = readme.read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    whole = "| inference CCT forward | 64 | float32 | 128 img/s | eager 64 img/s | 2.00x | 2% |"
    everything = (results / "README.md").read_text()
    assert whole in page and whole in everything and "| op add" not in page
    assert "| op add forward | 4 | float32 | 10 ms | eager 20 ms | 2.00x | 100% |" in everything
    assert everything.count("| op add") == 1 and (tmp_path / "chart.png").stat().st_size > 1000


def test_summary_names_every_row_that_is_behind(tmp_path):
    rows = [make_row(0.5, 1.0, kind=kind, what="CCT", batch=64) for kind in ("inference", "training")]
    rows += [make_row(0.5, 2.0, kind="inference", what="CCT", batch=8), make_row(0.01, 0.03)]
    for row in rows:
        record.append(row, tmp_path)
    text = table.summary(table.load(tmp_path))
    assert f"| {table.machine_name(rows[0])} | 2.00 to 4.00x |  | 2.00 to 2.00x |  |  | 3.00 to 3.00x |" in text
    assert text.endswith("\nOurs is behind in 0 of 4 rows.\n")
    record.append(make_row(0.04, 0.02, kind="inference", what="CCT", batch=1), tmp_path)
    text = table.summary(table.load(tmp_path))
    assert "| 0.50 to 4.00x |" in text and "behind in 1 of 5 rows:" in text
    assert "inference CCT forward batch 1 float32 cpu, 25 img/s against 50 img/s of eager (0.50x)" in text


def test_times_are_per_call_and_rounds_are_interleaved():
    order = []
    times = timing.interleave({n: lambda n=n: order.append(n) for n in "ab"}, rounds=4, min_time=0.0)
    assert order[-8:] == list("abbaabba") and times["a"].rounds == 4
    assert timing.summary([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == timing.Times(3.5, 2.0, 5.0, 6)
