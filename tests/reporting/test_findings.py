"""What the doctor found, in words: only warnings speak against measuring, and advice stands once."""

from pruning_bench.reporting.findings import Finding, findings_table, findings_text, headline

GOOD, NOTED = Finding("ok", "timer", "fine"), Finding("note", "governor", "cannot be read", "trust ratios")
BAD, ALSO = Finding("warning", "load", "9 of 10", "wait"), Finding("warning", "steal", "30 %", "wait")


def test_only_warnings_speak_against_measuring() -> None:
    assert headline([GOOD, NOTED]) == "fit to measure", headline([GOOD, NOTED])
    assert headline([GOOD, BAD, NOTED, ALSO]).endswith(": load, steal"), headline([GOOD, BAD, NOTED, ALSO])


def test_advice_stands_once_and_is_found_by_number() -> None:
    table = findings_table([GOOD, NOTED, BAD, ALSO])
    marks = [cells[0] for cells in table.cells]
    assert marks == ["ok", "note [1]", "warning [2]", "warning [2]"], f"{marks}"
    assert list(table.notes) == ["[1] trust ratios", "[2] wait"], f"{table.notes}"


def test_the_text_begins_with_the_verdict() -> None:
    lines = findings_text([GOOD, BAD]).splitlines()
    assert lines[0] == "not fit to measure as it is: load", lines
    assert lines[-1] == "[1] wait", lines
