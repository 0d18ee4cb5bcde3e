"""`pruning-bench sensitivity`: each part alone, on the selection split; what it prints and writes."""

from __future__ import annotations

import functools
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_bench import cli, sensitivity
from pruning_bench.conformance.training_checks import split_of, tiny_model
from pruning_bench.datasets.contract import Dataset, ReferenceDataset, Tensors
from pruning_bench.discover import discover
from pruning_bench.errors import DataError, PruningBenchError
from pruning_bench.judging.sensitivity import Alone, Sensitivity
from pruning_bench.metrics.contract import Score
from pruning_bench.reporting import sensitivity_text as forms
from pruning_bench.sensitivity import measure_sensitivity, sqnr


class Unseen:
    """A test split that must not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split was asked for {name}")


@functools.cache
def data() -> Dataset:
    discover()
    return Dataset("bright", ("above", "below"), split_of(), split_of(48), Unseen(), "0", "made up")  # type: ignore[arg-type]


DEFINITION = ReferenceDataset("bright", lambda *_, **__: data())


def found(recipe: str, **options: Any) -> Sensitivity:
    return measure_sensitivity(tiny_model(), recipe, data(), options.pop("definition", DEFINITION), **options)


def names(seen: Sensitivity) -> list[str]:
    return [part.part for part in seen.parts]


def test_every_layer_is_quantized_alone() -> None:
    seen = found("static:w3a8")
    assert names(seen) == ["0.0", "1.0", "4"], f"{names(seen)}"
    assert {part.change for part in seen.parts} == {"w3a8"}, f"{seen.parts}"
    assert [part.weights for part in seen.parts] == [36, 144, 512], f"{seen.parts}"
    assert seen.score == "top1", seen.score
    for part in (*seen.parts, seen.whole):
        assert part.loss == pytest.approx(seen.before - part.score), f"{part} from {seen.before}"
    quietest = max(part.sqnr for part in seen.parts)
    assert 0 < seen.whole.sqnr < quietest < 80, f"all {seen.whole.sqnr} dB, parts {[p.sqnr for p in seen.parts]}"


@pytest.mark.parametrize("recipe", ["magnitude:0.5+magnitude:0.5", "random:0.5+random:0.5", "repeat(2,wanda:0.4)"])
def test_the_last_step_knows_of_the_ones_before(recipe: str) -> None:
    """By hand: what the whole recipe gives."""
    from pruning_bench.workbench import compress_with

    seen, inputs, targets = found(recipe), data().selection.arguments(), data().selection.targets
    with torch.no_grad():
        outputs = compress_with(tiny_model(), recipe, data()).model(*inputs)
    expected = float((outputs.argmax(1) == targets).double().mean())
    assert seen.whole.score == pytest.approx(expected), f"{seen.whole.score}, should be {expected}"
    assert math.isfinite(seen.whole.sqnr), "the last step did nothing"
    pruned = sum(int(part.change.split()[0]) for part in seen.parts)
    left = sum(int(part.change.split()[2]) for part in seen.parts)
    assert 0 < pruned < left < sum(part.weights for part in seen.parts), f"{seen.parts}"


def test_a_model_that_works_in_place_leaves_the_examples() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(2.0))

    given = replace(data(), selection=Tensors(data().selection.arguments(), data().selection.targets))
    before = given.selection.arguments()[0].clone()
    measure_sensitivity(InPlace(), "magnitude:0.5", given, DEFINITION)
    assert torch.equal(given.selection.arguments()[0], before), "the examples changed"


def test_a_part_is_what_the_plan_does_to_that_layer_alone() -> None:
    """By hand: the one rounded weight of a plan without activations."""
    from pruning_bench.quantization.affine import fake_quantize
    from pruning_bench.quantization.plans import choose_weight

    seen, model, inputs = found("mixed:w2"), tiny_model(), data().selection.arguments()
    with torch.no_grad():
        before = model(*inputs)
        model[4].weight.copy_(fake_quantize(model[4].weight, choose_weight(model[4].weight, 2, "per_channel")))
        expected = sqnr(before, model(*inputs))
    last = seen.parts[-1]
    assert last.sqnr == pytest.approx(expected, abs=0.01), f"{last.sqnr} dB, should be {expected}"
    other = seen.parts[0].sqnr
    assert abs(other - expected) > 0.1, f"another layer gives {other} dB too: the test shows nothing"


def test_more_bits_are_quieter() -> None:
    few, many = found("static:w3a8"), found("static:w6a8")
    for one, other in zip(few.parts, many.parts, strict=True):
        assert one.sqnr < other.sqnr, f"{one.part}: {one.sqnr} dB at 3 bits, {other.sqnr} dB at 6"


@pytest.mark.parametrize(
    ("recipe", "parts", "change"),
    [
        ("magnitude:0.5,scope=layer", ["0.0", "1.0"], "18 of 36 pruned"),
        ("l1_filter:0.5", ["0.0", "1.0"], "2 of 4 channels"),
        ("codebook:w3", ["0.0", "1.0", "4"], "8 values"),
        ("magnitude:0.5+static:w8a8", ["0.0", "1.0", "4"], "w8a8"),
        ("dynamic:w8a8", ["4"], "w8a8"),
        ("fp8:w8a8", ["0.0", "1.0", "4"], "w8a8 e4m3"),
        ("fp8:w8,format=e5m2", ["0.0", "1.0", "4"], "w8 e5m2"),
    ],
)
def test_pruning_tables_and_later_steps(recipe: str, parts: list[str], change: str) -> None:
    seen = found(recipe, limit=20)
    assert names(seen) == parts, f"{names(seen)}, should be {parts}"
    assert seen.parts[0].change == change, f"{seen.parts[0].change}"
    assert seen.examples == 20, f"{seen.examples} examples"
    for part in seen.parts:
        assert math.isfinite(part.sqnr), f"{part}: nothing changed"


@pytest.mark.slow
def test_of_a_step_on_a_pruned_model_the_pruned_one_is_the_signal() -> None:
    dense, pruned = found("static:w8a8"), found("magnitude:0.9+static:w8a8")
    assert pruned.whole.sqnr > 20, f"{pruned.whole.sqnr} dB: the pruning counts as noise"
    assert pruned.step == "static:w8a8" == dense.step, pruned.step


def test_a_score_in_which_lower_is_better_and_data_without_targets() -> None:
    score = Score("distance", lambda outputs, reference: (outputs - reference).abs().mean(1), "lower", "dense", 0.1)
    seen = found("static:w3a8", definition=replace(DEFINITION, score=score))
    assert seen.score == "distance", seen.score
    assert all(part.loss == pytest.approx(part.score) and part.loss > 0 for part in seen.parts), f"{seen.parts}"
    bare = replace(data(), selection=Tensors(data().selection.arguments()))
    agreed = measure_sensitivity(tiny_model(), "static:w3a8", bare, DEFINITION)
    assert (agreed.score, agreed.before) == ("agreement", 1.0), f"{agreed.score} {agreed.before}"


@pytest.mark.parametrize(("own", "role"), [(True, "calibration inputs"), (False, "inputs of the selection split")])
def test_targets_that_are_missing_are_those_of_the_split_that_is_scored(own: bool, role: str) -> None:
    score = Score("distance", lambda outputs, targets: (outputs - targets).abs().mean(1), "lower", "targets", 0.1)
    bare = replace(data(), selection=Tensors(data().selection.arguments()))
    with pytest.raises(DataError, match=f"no targets for score distance, should be targets beside the {role}"):
        measure_sensitivity(tiny_model(), "rtn:w4", bare, replace(DEFINITION, score=score, own=own))


@pytest.mark.parametrize(
    ("recipe", "limit", "said"),
    [
        ("dense", None, "sensitivity: dense, should be a method"),
        ("finetune:1", None, "sensitivity: finetune:1, a step that trains, should be a method"),
        ("cast:bf16", None, "sensitivity: a plan of cast:bf16 without layers"),
        ("static:w8a8", 0, "sensitivity: --limit 0, should be at least 1"),
    ],
)
def test_what_has_no_parts_is_refused(recipe: str, limit: int | None, said: str) -> None:
    with pytest.raises(PruningBenchError, match=said):
        found(recipe, limit=limit)


SEEN = Sensitivity(
    "net<1>", "bright", "static:w4a8", "static:w4a8", 100, "top1", 0.95,
    Alone("all", 30, "w4a8", 0.9, 0.05, 18.0),
    (Alone("stem", 10, "w4a8", 0.94, 0.01, 20.0), Alone("head|x", 20, "w4a8", 0.95, 0.0, math.inf)),
)  # fmt: skip


def test_the_table_shows_every_part_with_a_bar() -> None:
    shown = forms.sensitivity_text(SEEN)
    rows = [line for line in shown.splitlines() if line.startswith(("stem", "head"))]
    assert "20.0 dB" in rows[0], rows[0]
    assert rows[0].endswith("#" * forms.BAR), rows[0]
    assert "#" not in rows[1], f"{rows[1]}: nothing changed there"
    assert "95.00 % before, 90.00 % with all parts (+5.00 pp lost, SQNR 18.0 dB)" in shown, shown


def test_markdown_json_and_plot_are_whole() -> None:
    assert "| head\\|x |" in forms.sensitivity_markdown(SEEN), forms.sensitivity_markdown(SEEN)
    read = json.loads(forms.sensitivity_json(SEEN))
    assert [part["sqnr"] for part in read["parts"]] == [20.0, None], f"{read['parts']}"
    plot = ElementTree.fromstring(forms.sensitivity_svg(SEEN))
    words = [node.text or "" for node in plot if node.tag.endswith("text")]
    assert any("net<1>" in text for text in words), f"{words}"
    bars = [float(node.get("width", "0").rstrip("%")) for node in plot if node.tag.endswith("rect")][1:]
    assert len(bars) == 2, f"bars {bars}"
    assert bars[0] > bars[1] == 0, f"bars {bars}, should be one and none"


def test_the_command_writes_what_it_is_asked_for_and_destroys_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measure(dense: nn.Module, recipe: str, dataset: Dataset, definition: Any, **options: Any) -> Sensitivity:
        asked.append((recipe, dataset.name, options["limit"]))
        return SEEN

    monkeypatch.setattr(sensitivity, "measure_sensitivity", measure)

    def run(*words: object) -> int:
        return cli.main(["sensitivity", "lenet5", "static:w4a8", *map(str, words)])

    files = [tmp_path / f"found{ending}" for ending in (".md", ".json", ".svg")]
    outputs = [word for file in files for word in ("-o", file)]
    assert run("--limit", 7, *outputs) == 0, capsys.readouterr().err
    assert asked == [("static:w4a8", "fashion_mnist", 7)], f"{asked}"
    assert all(file.stat().st_size for file in files), "an empty file"
    assert "stem" in capsys.readouterr().out, "no table on the terminal"
    assert run("-o", files[0]) == 2, "an existing file was overwritten"
    assert "an existing file, should be a new one, or --force" in capsys.readouterr().err
    assert run("-o", tmp_path / "found.png") == 2, "an ending that nobody writes"
    assert "a name ending in .md, .json, .svg" in capsys.readouterr().err
    assert len(asked) == 1, "work was done before the mistake was told"


def test_sqnr() -> None:
    signal = torch.tensor([3.0, 4.0])
    assert sqnr(signal, signal) == math.inf, "equal outputs have no noise"
    assert sqnr(signal, signal + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)
    worse: Tensor = signal * 0
    assert sqnr(signal, worse) == pytest.approx(0.0, abs=1e-9), f"{sqnr(signal, worse)}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cross_layer_equalization:w4,granularity=per_channel", "gptq:w4"])
def test_a_layer_of_a_plan_that_writes_is_no_noisier_than_all(recipe: str) -> None:
    """Scaled seams stay whole, and rounded weights of other layers stay out."""
    seen = found(recipe)
    noisiest = min(part.sqnr for part in seen.parts)
    assert noisiest > seen.whole.sqnr - 1, f"a part at {noisiest} dB, all at {seen.whole.sqnr}"


def test_half_a_seam_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant that keeps each layer's own writes alone."""
    monkeypatch.setattr(sensitivity, "_rescales", lambda plan: False)
    with pytest.raises(AssertionError, match="a part at"):
        test_a_layer_of_a_plan_that_writes_is_no_noisier_than_all("cross_layer_equalization:w4,granularity=per_channel")
