"""The verdicts as JUnit XML, which continuous integration reads: a verdict that fails the run is a failing test."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from pruning_bench.judging.gate import Report
from pruning_bench.judging.verdicts import Verdict
from pruning_bench.records import Outcome
from pruning_bench.reporting.verdict_text import explained


def to_junit(report: Report) -> str:
    """One test a verdict: its class the case, its name the metric; ERROR and INVALID are errors, no baseline a skip."""
    suite = ElementTree.Element("testsuite", name="pruning_bench", tests=str(len(report.verdicts)))
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for verdict in report.verdicts:
        test = ElementTree.SubElement(suite, "testcase", classname=_printable(verdict.case_id), name=verdict.metric)
        if kind := _kind(verdict):
            counts[kind] += 1
            message = _printable(f"{verdict.outcome.value}: {explained(verdict)}".removesuffix(": "))
            ElementTree.SubElement(test, kind, message=message)
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(counts[kind]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _kind(verdict: Verdict) -> str:
    """The element that a verdict puts into its test; "" for a test that passed."""
    if verdict.outcome in (Outcome.ERROR, Outcome.INVALID):
        return "error"
    if verdict.fails:
        return "failure"
    return "skipped" if verdict.outcome in (Outcome.NEW, Outcome.UNAVAILABLE, Outcome.INCOMPARABLE) else ""


def _printable(text: str) -> str:
    """Without the control characters that no XML may hold."""
    return "".join(c if c.isprintable() else " " for c in text)
