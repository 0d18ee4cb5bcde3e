"""Rows and the three ways to show them: nothing crashes on what is absent, and what is claimed is what was measured."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_bench.judging.acceptance import accept
from pruning_bench.judging.baseline import Baseline
from pruning_bench.judging.gate import judge_run
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.vectors import pack, pack_scores
from pruning_bench.records import CaseStatus, Environment, Measurement, Outcome, Run
from pruning_bench.reporting import rows as module
from pruning_bench.reporting.as_json import to_json
from pruning_bench.reporting.junit import to_junit
from pruning_bench.reporting.markdown import to_markdown
from pruning_bench.reporting.rows import Row, name_only, paper_claim, rows_of
from pruning_bench.reporting.tables import case_tables, headline, how_to_accept, preamble, verdict_tables
from pruning_bench.reporting.terminal import to_terminal

HERE = Environment({"cpu": "Some CPU", "cores": "2", "torch": "2.14.1", "onnxruntime": "1.22.0", "threads": "1"})
LONGEST = "l1_filter:0.5+finetune:2+static:w8a8"
RECIPES = {"dense": (1.0, 1.0, 1.0), "magnitude:0.9": (1.0, 0.1, 1.0), LONGEST: (0.07, 0.25, 0.15)}
N = 1000


def measured(case, lost=0, slow=1.0, processes=1, error=0.003):
    recipe = case.split("/")[1]
    size, macs, time = RECIPES[recipe]
    bits = np.arange(N) % 10 != 0
    bits[np.flatnonzero(bits)[:lost]] = False
    samples = (math.log(time * slow),) * processes

    def record(metric, value, unit, better, rule, **fields):
        return Measurement(case, metric, value, unit, better, rule, **fields)

    return (
        record("top1", float(bits.mean()), "1", "higher", "paired", vector=pack(bits)),
        record("loss", 0.3, "1", "lower", "shown"),
        record("bytes", 1.1e6 * size, "B", "lower", "exact"),
        record("macs", 41e6 if recipe != LONGEST else 41e6 * macs, "MAC", "lower", "exact"),
        record("macs_effective", 41e6 * macs, "MAC", "lower", "exact"),
        record("latency", 1.2e-3 * time, "s", "lower", "shown"),
        record("anchor_latency", 1.2e-3, "s", "lower", "canary"),
        record("relative_time", time * slow, "1", "lower", "speed", samples=samples, errors=(error,) * processes),
        record("strongest_ratio", 2 * time, "1", "lower", "shown", detail={"strongest": "onnxruntime/dense"}),
        record("twin", 1.0, "1", "neither", "control", detail={"holds": True}),
    )


def case_id(recipe, runtime="eager", model="image_classifier", suffix=""):
    return f"{model}-fashion_mnist/{recipe}/{runtime}{suffix}"


CASES = tuple(case_id(recipe, runtime) for recipe in RECIPES for runtime in ("eager", "onnxruntime"))


def make_run(measurements, cases=CASES, states=()):
    known = {status.case_id: status for status in states}
    return Run(
        "20260101-000000-ci", "2026-01-01T00:00:00", "ci", HERE,
        tuple(known.get(c, CaseStatus(c, "ran", trains="finetune" in c)) for c in cases), tuple(measurements),
    )  # fmt: skip


WHOLE = make_run([m for c in CASES for m in measured(c)])
BASELINE = accept(Baseline(), make_run([m for c in CASES for m in measured(c, processes=5)]), reason="first")


def rows_by_case(run, baseline=BASELINE):
    return {row.case_id: row for row in rows_of(run, judge_run(run, baseline), baseline)}


# rows


def check_row_of_a_compressed_case(rows_of):
    rows = {row.case_id: row for row in rows_of(WHOLE, judge_run(WHOLE, BASELINE), BASELINE)}
    row = rows[case_id(LONGEST, "onnxruntime")]
    found = (row.model, row.dataset, row.recipe, row.runtime, row.settings, row.outcome)
    assert found == ("image_classifier", "fashion_mnist", LONGEST, "onnxruntime", "", "PASS"), f"{found}"
    numbers = {
        "top1": 0.9, "top1_change": 0.0, "bytes": 77e3, "compression": 1 / 0.07, "macs": 10.25e6, "macs_share": 0.25,
        "latency": 0.18e-3, "speedup": 1 / 0.15, "strongest_speedup": 1 / 0.3,
    }  # fmt: skip
    for name, value in numbers.items():
        assert getattr(row, name) == pytest.approx(value), f"{name}={getattr(row, name)}, should be {value}"
    assert row.speedup_low < row.speedup < row.speedup_high, f"{row}"
    assert row.strongest == "onnxruntime/dense", f"{row}"
    assert list(rows) == list(CASES), "not in the order of the grid"


def test_row_of_a_compressed_case():
    check_row_of_a_compressed_case(rows_of)


def _each(change):
    return lambda *a: tuple(change(row) for row in rows_of(*a))


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(_each(lambda r: replace(r, speedup=1 / r.speedup)), id="time for speed"),
        pytest.param(_each(lambda r: replace(r, compression=1 / r.compression)), id="inverse compression"),
        pytest.param(_each(lambda r: replace(r, top1_change=r.top1)), id="change without dense"),
        pytest.param(_each(lambda r: replace(r, speedup_low=r.speedup_high)), id="no interval"),
        pytest.param(_each(lambda r: replace(r, strongest_speedup=r.speedup)), id="only the weak anchor"),
        pytest.param(lambda *a: tuple(sorted(rows_of(*a), key=lambda r: r.recipe)), id="sorted"),
    ],
)
def test_row_bites(mutant):
    with pytest.raises(AssertionError):
        check_row_of_a_compressed_case(mutant)


def test_change_is_to_dense_on_the_same_runtime():
    lost = {case_id("dense", "onnxruntime"): 100, case_id(LONGEST, "onnxruntime"): 110}
    run = make_run([m for c in CASES for m in measured(c, lost=lost.get(c, 0))])
    rows = rows_by_case(run)
    assert rows[case_id(LONGEST, "onnxruntime")].top1_change == pytest.approx(-0.01), "not to its own dense"
    assert rows[case_id(LONGEST, "eager")].top1_change == pytest.approx(0.0), "not to its own dense"
    part = make_run(
        [m for c in CASES if c != case_id("dense", "onnxruntime") for m in measured(c, lost=lost.get(c, 0))]
    )
    change = rows_by_case(part)[case_id(LONGEST, "onnxruntime")].top1_change
    assert change == pytest.approx(-0.11), f"{change}: without its own, another dense of the same model"


def test_seeds_are_one_row():
    cases = [case_id(LONGEST, suffix=s) for s in ("", "-s1", "-s2")]
    run = make_run([m for i, c in enumerate(cases) for m in measured(c, lost=30 * i)], cases)
    rows = rows_by_case(run, Baseline())
    assert list(rows) == cases[:1], f"{list(rows)}"
    row = rows[cases[0]]
    assert (row.seeds, row.top1) == (3, pytest.approx(0.87)), f"{row}"


def test_settings_are_told():
    case = case_id("dense", suffix="-cuda-t2-b64")
    row = rows_by_case(make_run(measured(case), [case]), Baseline())[case]
    assert (row.runtime, row.settings) == ("eager", "cuda t2 b64"), f"{row}"


def check_interval_knows_the_spread(rows_of):
    """One process believes its own error; the baseline's spread between processes is in the interval."""
    baseline = {k: replace(line, spread=0.02) for k, line in BASELINE.times[HERE.key].lines.items()}
    known = Baseline(BASELINE.portable, {HERE.key: replace(BASELINE.times[HERE.key], lines=baseline)})
    report = judge_run(WHOLE, known)
    row = rows_of(WHOLE, report, known)[0]
    assert row.speedup_high - row.speedup_low > 0.1, f"{row}"


def test_interval_knows_the_spread():
    check_interval_knows_the_spread(rows_of)


def test_interval_bites():
    with pytest.raises(AssertionError):
        check_interval_knows_the_spread(lambda run, report, known: rows_of(run, report))


# what MACs promise and time does not keep


def check_paper_claim(claim):
    def of(share, low, high):
        return claim(Row("", "", "", "", "", macs_share=share, speedup=1.0, speedup_low=low, speedup_high=high))

    assert of(0.1, 0.98, 1.02) == "removes 90 % of the MACs on paper and none of the time", of(0.1, 0.98, 1.02)
    assert of(0.5, 1.0, 1.04) == "removes 50 % of the MACs on paper and none of the time", of(0.5, 1.0, 1.04)
    assert of(0.1, 0.7, 0.9) == "removes 90 % of the MACs on paper and takes more time", of(0.1, 0.7, 0.9)
    assert "no time that this run can prove" in of(0.1, 0.9, 2.0), of(0.1, 0.9, 2.0)
    assert of(0.1, 1.5, 1.6) == "", "a real speed-up"
    assert of(0.6, 0.98, 1.02) == "", "hardly any MACs removed"
    assert of(None, 0.98, 1.02) == "", "no MACs counted"
    assert claim(Row("", "", "", "", "", macs_share=0.1)) == "", "no time measured"


def test_paper_claim():
    check_paper_claim(paper_claim)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda row: "", id="silent"),
        pytest.param(lambda row: paper_claim(replace(row, macs_share=0.1)), id="share ignored"),
        pytest.param(lambda row: paper_claim(replace(row, speedup_high=1.0)), id="wide intervals prove none"),
        pytest.param(
            lambda row: paper_claim(replace(row, speedup_low=min(row.speedup_low or 9, 1))), id="speed-ups ignored"
        ),
    ],
)
def test_paper_claim_bites(mutant):
    with pytest.raises((AssertionError, TypeError)):
        check_paper_claim(mutant)


def test_a_mask_says_so_in_every_format():
    report = judge_run(WHOLE, BASELINE)
    rows = rows_of(WHOLE, report, BASELINE)
    words = "removes 90 % of the MACs on paper and none of the time"
    for text in (to_terminal(WHOLE, report, rows), to_markdown(WHOLE, report, rows), to_json(WHOLE, report, rows)):
        assert words in text, f"not told in {text[:80]!r}"


# what is quantized in name only


def quantized(recipe_runtime="onnxruntime", fallbacks=(), layers=3, agreement=0.9997):
    case = case_id(LONGEST, recipe_runtime)
    detail = {"kernels": [], "quantized_layers": layers, "float_fallbacks": list(fallbacks)}
    shown = [replace(m, detail=detail) if (m.case_id, m.metric) == (case, "latency") else m for m in WHOLE.measurements]
    told = {"float": 0.93}
    return make_run([
        *shown,
        Measurement(case, "agreement_simulation", agreement, "1", "higher", "shown", detail=told),
        Measurement(CASES[1], "agreement_simulation", 1.0, "1", "higher", "shown"),
    ])  # fmt: skip


def every_format(run):
    report = judge_run(run, BASELINE)
    rows = rows_of(run, report, BASELINE)
    markdown = to_markdown(run, report, rows).replace("\\", "")
    return {"terminal": to_terminal(run, report, rows), "Markdown": markdown, "JSON": to_json(run, report, rows)}


@pytest.mark.parametrize(
    ("fallbacks", "words"),
    [
        (["a (Conv float32)", "b (Conv float32)", "c (Gemm float32)"],
         "int8 in name only: all 3 quantized layers ran in float"),
        (["b (Conv float32)"], "int8 in part only: 1 of 3 quantized layers ran in float: b (Conv float32)"),
    ],
)  # fmt: skip
def test_int8_in_name_only_is_called_so_in_every_format(fallbacks, words):
    run = quantized(fallbacks=fallbacks)
    for name, text in every_format(run).items():
        assert words in text, f"not told in {name}: {text}"
    for name, text in every_format(quantized()).items():
        assert "only: " not in text, f"a finding without a fallback in {name}: {text}"
    row = rows_by_case(run)[case_id(LONGEST, "onnxruntime")]
    assert (row.quantized_layers, list(row.float_fallbacks)) == (3, fallbacks), f"{row}"
    assert row.note.startswith(words), row.note


def test_weights_that_are_small_on_disk_alone_are_called_so():
    row = Row("", "", "", "", "", quantized_layers=3, float_weights=("a (Conv float32)", "b (Conv float32)"))
    assert name_only(row) == "smaller on disk: 2 of 3 quantized layers read their weights as floats", name_only(row)
    assert "all 3 quantized" in name_only(replace(row, quantized_layers=3, float_weights=("a", "b", "c")))
    assert name_only(replace(row, float_weights=())) == "", "read as codes throughout"


def test_the_agreement_with_the_simulation_is_told():
    run = quantized()
    words = f"simulation: {LONGEST} on onnxruntime 99.97 % (unquantized: 93.00 %)"
    texts = every_format(run)
    for name in ("terminal", "Markdown"):
        assert words in texts[name], f"not told in {name}: {texts[name]}"
        assert texts[name].count("(unquantized:") == 1, f"a row that is not quantized is listed in {name}"
    rows = {row["case_id"]: row for row in json.loads(texts["JSON"])["rows"]}
    row = rows[case_id(LONGEST, "onnxruntime")]
    assert (row["simulation_agreement"], row["simulation_agreement_float"]) == (0.9997, 0.93), f"{row}"
    assert rows[CASES[1]]["simulation_agreement"] is None, "dense is not quantized"
    assert "simulation" not in every_format(WHOLE)["terminal"], "a note about nothing"


def test_a_runtime_further_from_the_simulation_than_dense_is_told():
    words = "not what the plan says: predicts as its simulation in 92.00 %, the unquantized model in 93.00 %"
    for name, shown in every_format(quantized(agreement=0.92)).items():
        assert words in shown, f"not told in {name}: {shown}"
    for name, shown in every_format(quantized(agreement=0.93)).items():
        assert "not what the plan says" not in shown, f"a finding about nothing in {name}: {shown}"


@pytest.mark.parametrize("baseline", [Baseline(), BASELINE], ids=["new", "compared"])
def test_a_cut_sample_has_no_interval_and_says_why(baseline):
    cut = {"pairs": 20, "stopped": "cut"}
    run = make_run([replace(m, detail=cut) if m.metric == "relative_time" else m for m in WHOLE.measurements])
    row = rows_by_case(run, baseline)[CASES[0]]
    assert (row.speedup, row.speedup_low, row.speedup_high) == (pytest.approx(1.0), None, None), f"{row}"
    assert row.note.count("20 pairs") == 1, row.note


# anything may be absent


@given(
    kept=st.sets(st.integers(0, 59)),
    states=st.lists(
        st.sampled_from(["ran", "ran", "skipped", "error", "deselected", "not_run"]), min_size=6, max_size=6
    ),
    baseline=st.sampled_from([Baseline(), BASELINE]),
    interrupted=st.booleans(),
)
def test_any_part_of_a_run_is_shown(kept, states, baseline, interrupted):
    statuses = [CaseStatus(c, s, "no | reason\nat all", ("top1",)) for c, s in zip(CASES, states, strict=True)]
    run = replace(make_run([m for i, m in enumerate(WHOLE.measurements) if i in kept], states=statuses))
    run = replace(run, interrupted=interrupted)
    report = judge_run(run, baseline)
    rows = rows_of(run, report, baseline)
    shown = {c for c, s in zip(CASES, states, strict=True) if s in ("ran", "skipped", "error")}
    shown |= {m.case_id for m in run.measurements}
    assert {row.case_id for row in rows} == shown, f"{[r.case_id for r in rows]}, should be {shown}"
    text = to_terminal(run, report, rows)
    assert "None" not in text, text
    assert "nan" not in text, text
    for line in to_markdown(run, report, rows).splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (12, 9), f"cells torn apart: {line}"
    document = json.loads(to_json(run, report, rows))
    assert len(document["rows"]) == len(rows), "rows lost"
    assert document["exit_status"] == report.exit_status, f"{document['exit_status']}"


def test_junit_fails_what_fails_the_run():
    worse = [replace(m, value=m.value + 1) if m.metric == "bytes" else m for m in WHOLE.measurements]
    report = judge_run(replace(WHOLE, measurements=tuple(worse)), BASELINE)
    suite = ElementTree.fromstring(to_junit(report))
    failed = {(t.get("classname"), t.get("name")) for t in suite if t.find("failure") is not None}
    assert failed == {(v.case_id, v.metric) for v in report.failing}, f"{failed}"
    assert len(failed) == int(suite.get("failures")) > 0, f"{suite.attrib}"
    assert "REGRESSED: bytes +1" in {t[0].get("message") for t in suite if len(t)}, to_junit(report)
    good = ElementTree.fromstring(to_junit(judge_run(WHOLE, BASELINE)))
    assert good.get("failures") == good.get("errors") == "0", f"{good.attrib}"
    states = [CaseStatus(c, "error", "torn \x1b[1m <apart> & more") for c in CASES]
    broken = ElementTree.fromstring(to_junit(judge_run(make_run((), states=states), BASELINE)))
    assert int(broken.get("errors")) == len(CASES), f"{broken.attrib}"
    assert "<apart> & more" in broken[0][0].get("message"), broken[0][0].attrib


def test_a_case_of_nobodys_grid_is_shown():
    run = make_run([replace(m, case_id="mine | own") for m in measured(CASES[0])], ["mine | own"])
    report = judge_run(run, Baseline())
    rows = rows_of(run, report)
    assert "mine | own" in to_terminal(run, report, rows)
    assert "mine \\| own" in to_markdown(run, report, rows)


# the words above the tables


def test_headline_tells_the_verdict():
    assert headline(judge_run(WHOLE, BASELINE)) == "passed: 42 PASS", headline(judge_run(WHOLE, BASELINE))
    failing = make_run([m for c in CASES for m in measured(c, lost=50 if c == CASES[0] else 0)])
    assert headline(judge_run(failing, BASELINE)).startswith("FAILED: 1 REGRESSED, "), "not told"
    assert headline(judge_run(replace(WHOLE, interrupted=True), BASELINE)).startswith("not judged"), "not told"
    broken = replace(WHOLE.measurements[9], detail={"holds": False, "why": "x"})
    invalid = replace(WHOLE, measurements=(*WHOLE.measurements[:9], broken, *WHOLE.measurements[10:]))
    blamed = headline(judge_run(invalid, BASELINE))
    assert blamed.startswith("INVALID: a control failed, the machine was not fit to measure: "), blamed
    spoilt = replace(invalid, measurements=(*WHOLE.measurements, replace(broken, metric="spoilt_twin")))
    blamed = headline(judge_run(spoilt, BASELINE))
    assert blamed.startswith("INVALID: a control failed, wrong outputs would not be found: "), blamed
    assert headline(judge_run(make_run([], []), Baseline())) == "passed: nothing to judge"


ACCEPT = "to compare from now on: pruning-bench accept 20260101-000000-ci"
PORTABLE_ONLY = accept(Baseline(), WHOLE, reason="first", scope="portable")
TIMES_ONLY = replace(BASELINE, portable={})


def check_new_machine_hint(preamble):
    for baseline, expected in (
        (Baseline(), "6 cases have NEW portable metrics, 6 timed cases are NEW or INCOMPARABLE on this machine; {} "),
        (PORTABLE_ONLY, "6 timed cases are NEW or INCOMPARABLE on this machine; {} --times "),
        (TIMES_ONLY, "6 cases have NEW portable metrics; {} --portable "),
    ):
        report = judge_run(WHOLE, baseline)
        [hint] = [line for line in preamble(WHOLE, report, rows_of(WHOLE, report)) if "accept" in line]
        assert hint == expected.format(ACCEPT) + '--reason "..."', hint
    known = judge_run(WHOLE, BASELINE)
    assert not any("accept" in line for line in preamble(WHOLE, known, ())), "a hint without need"


def test_a_hint_of_a_failing_run_says_how_failures_stay_out():
    failing = make_run([m for c in CASES for m in measured(c, lost=50 if c == CASES[0] else 0)])
    [hint] = how_to_accept(failing, judge_run(failing, PORTABLE_ONLY))
    assert hint.endswith("; what fails stays out with --only CASE"), hint


def some_known(count):
    """A baseline of so many of the cases."""
    kept = {key: line for key, line in PORTABLE_ONLY.portable.items() if line.case_id in CASES[:count]}
    return replace(PORTABLE_ONLY, portable=kept)


def check_what_has_no_baseline(render):
    for known, says in ((0, "6 of 6"), (2, "4 of 6")):
        first, second, *_ = render(WHOLE, judge_run(WHOLE, some_known(known)), ())
        assert first.startswith("passed: ") == bool(known), f"{known} known: {first}"
        assert f"{says} cases have no baseline: nothing of them is judged" in second, f"{known} known: {second}"
    for baseline in (BASELINE, PORTABLE_ONLY):
        lines = render(WHOLE, judge_run(WHOLE, baseline), ())
        assert not any("no baseline" in line for line in lines), f"{lines}"


def markdown_lines(*given):
    return [line for line in to_markdown(*given).replace("**", "").splitlines() if line]


@pytest.mark.parametrize("render", [preamble, markdown_lines, lambda *a: to_terminal(*a).splitlines()])
def test_what_has_no_baseline_is_told_below_the_headline(render):
    check_what_has_no_baseline(render)


def test_what_has_no_baseline_bites():
    for mutant in (
        lambda run, report, rows: [line for line in preamble(run, report, rows) if "no baseline" not in line],
        lambda run, report, rows: ["passed: 42 NEW", *preamble(run, report, rows)[1:]],
        lambda run, report, rows: preamble(run, judge_run(run, some_known(2)), rows),
    ):
        with pytest.raises(AssertionError):
            check_what_has_no_baseline(mutant)


def test_new_machine_hint():
    check_new_machine_hint(preamble)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda run, report, rows: [headline(report)], id="silent"),
        pytest.param(lambda run, report, rows: preamble(run, judge_run(run, Baseline()), rows), id="always"),
    ],
)
def test_new_machine_hint_bites(mutant):
    with pytest.raises((AssertionError, ValueError)):
        check_new_machine_hint(mutant)


def test_what_no_control_could_show_is_remarked_once():
    remarks = [
        Measurement(c, "spoilt_twin", 0.5, "1", "neither", "shown", detail={"remark": "nothing shows it"})
        for c in CASES[:2]
    ]
    run = make_run([*WHOLE.measurements, *remarks])
    found = [line for line in preamble(run, judge_run(run, BASELINE), ()) if "nothing shows" in line]
    assert found == [f"nothing shows it [{CASES[0]}]"], f"{found}"
    assert judge_run(run, BASELINE).exit_status == 0, "a remark is no verdict"


def test_the_false_alarm_rate_says_what_was_simulated_and_no_more():
    report = judge_run(WHOLE, BASELINE)
    [line] = [line for line in preamble(WHOLE, report, ()) if "Holm" in line]
    assert line == (
        "0 changed accuracies and suspected speeds tested together (Holm, level 1 %); 0 of 200 simulated runs of 20 "
        "unchanged speeds failed, with normal noise of 1.5 % between processes"
    ), line
    other = judge_run(WHOLE, BASELINE, Policy(speed_floor=0.01))
    [line] = [line for line in preamble(WHOLE, other, ()) if "Holm" in line]
    assert "was not simulated" in line, line


@pytest.mark.parametrize(("unit", "suffix"), [("1", ""), ("dB", " dB")])
def test_a_score_is_written_alike_in_all_tables(unit, suffix):
    """A score of unit "1" need not be a share: 31 is not 3100 %."""

    def run_of(shift):
        values = np.linspace(31, 32, 50, dtype=np.float32) + np.float32(shift)
        mean, vector = float(values.mean(dtype=np.float64)), pack_scores(values)
        scored = [Measurement(c, "psnr", mean, unit, "higher", "paired", vector=vector) for c in CASES[:1]]
        return make_run(scored, CASES[:1])

    run = run_of(-0.25)
    report = judge_run(run, accept(Baseline(), run_of(0.0), reason="first", scope="portable"))
    cells = [cell for row in verdict_tables(report)[0].cells for cell in row if "REGRESSED" in row[0]]
    assert cells[2] == f"31.5{suffix} -> 31.25{suffix}", f"{cells}"
    assert cells[3] == f"-0.25{suffix} [-0.25, -0.25]{suffix}", f"{cells}"
    assert cells[4] == f"0.002{suffix}", f"{cells}"
    [row] = rows_of(run, report)
    assert row.note.startswith(f"psnr -0.25{suffix} "), row.note
    assert f"31.25{suffix}" in case_tables([row])[0].cells[0], f"{case_tables([row])[0].cells[0]}"


def test_a_single_process_is_told():
    report = judge_run(WHOLE, BASELINE)
    assert any("single process" in line for line in preamble(WHOLE, report, rows_of(WHOLE, report)))
    many = make_run([m for c in CASES for m in measured(c, processes=3)])
    lines = preamble(many, judge_run(many, BASELINE), rows_of(many, judge_run(many, BASELINE)))
    assert not any("single process" in line for line in lines), f"{lines}"


def test_the_failing_come_first_with_all_that_explains_them():
    run = make_run([m for c in CASES for m in measured(c, lost=50 if c == CASES[2] else 0)])
    report = judge_run(run, BASELINE)
    table = verdict_tables(report)[0]
    [cells] = table.cells
    assert cells[:6] == [
        "REGRESSED [1]",
        "top1",
        "0.9000 -> 0.8500",
        "-5.00 pp [-6.86, -3.62] pp",
        "0.20 pp",
        "0.80 pp",
    ]
    assert cells[6:] == ["1000", CASES[2]], f"{cells}"
    assert table.notes == ["[1] lost 50 (1, 2, 3, 4, 5, ...), gained 0"], f"{table.notes}"
    text = to_terminal(run, report, rows_of(run, report))
    assert text.index("REGRESSED [1]") < text.index("image_classifier on fashion_mnist"), "after the table"


def test_inconclusive_tells_what_it_could_have_seen():
    run = make_run([m for c in CASES for m in measured(c, slow=1.02, error=0.02)])
    report = judge_run(run, BASELINE)
    [table] = verdict_tables(report)
    assert table.title == "inconclusive", table.title
    assert len(table.cells) == 6, f"{table.cells}"
    assert all(cells[5].endswith(" %") for cells in table.cells), "no smallest effect"
    row = next(r for r in rows_of(run, report) if r.case_id == CASES[0])
    assert row.outcome == Outcome.INCONCLUSIVE.value, f"{row}"
    assert "could have seen" in row.note, row.note


def check_width(run, report, rows):
    text = to_terminal(run, report, rows)
    table = text[text.index("recipe") :]
    widest = max(len(line) for line in table.splitlines() if not line.startswith("["))
    assert widest <= 160, f"{widest} columns"


def test_the_table_fits_160_columns():
    lost = {CASES[0]: 50}
    run = make_run([m for c in CASES for m in measured(c, lost=lost.get(c, 0), slow=1.02, error=0.02)])
    report = judge_run(run, BASELINE)
    check_width(run, report, rows_of(run, report, BASELINE))


def test_width_bites(monkeypatch):
    report = judge_run(WHOLE, BASELINE)
    wide = [replace(row, recipe=row.recipe * 3) for row in rows_of(WHOLE, report, BASELINE)]
    with pytest.raises(AssertionError):
        check_width(WHOLE, report, wide)


def test_one_table_for_each_model():
    cases = [case_id("dense", model=m) for m in ("resnet20", "image_classifier")]
    run = make_run([m for c in cases for m in measured(c)], cases)
    titles = [t.title for t in case_tables(rows_of(run, judge_run(run, Baseline())))]
    assert titles == ["resnet20 on fashion_mnist", "image_classifier on fashion_mnist"], f"{titles}"


def test_json_holds_numbers_in_their_units():
    report = judge_run(WHOLE, BASELINE)
    document = json.loads(to_json(WHOLE, report, rows_of(WHOLE, report)))
    assert (document["schema"], document["kind"], document["environment"]["key"]) == (1, "report", HERE.key)
    row = document["rows"][0]
    assert (row["latency"], row["bytes"], row["top1"]) == (1.2e-3, 1.1e6, 0.9), f"{row}"
    assert {v["outcome"] for v in document["verdicts"]} == {"PASS"}, "outcomes"


def test_a_failing_verdict_decides_the_row(monkeypatch):
    run = make_run([m for c in CASES for m in measured(c, lost=50 if c == CASES[0] else 0)])
    assert rows_by_case(run)[CASES[0]].outcome == "REGRESSED", "the worst verdict is not the row's"
    monkeypatch.setattr(module, "min", max, raising=False)
    with pytest.raises(AssertionError):
        assert rows_by_case(run)[CASES[0]].outcome == "REGRESSED"
