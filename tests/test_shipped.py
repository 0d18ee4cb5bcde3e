"""What the shipped checkpoints promise, on all 10,000 test images and the runtimes that are here."""

import functools

import pytest
import torch

from pruning_bench.cases import Case, reference_pairs
from pruning_bench.discover import discover
from pruning_bench.errors import UnavailableError
from pruning_bench.measuring import kernel_detail
from pruning_bench.metrics.accuracy import agreement, top1
from pruning_bench.models.checkpoints import SHIPPED
from pruning_bench.registry import DATASETS, RUNTIMES
from pruning_bench.workbench import Workbench

pytestmark = pytest.mark.slow
discover()
PAIRS = reference_pairs(DATASETS, SHIPPED)
INTEGER = [name for name in RUNTIMES if not getattr(RUNTIMES[name], "simulates_quantized", False)]
LEAST_ACCURACY = {"lenet5": 0.90, "vit_tiny": 0.90}  # the others 0.93
LEAST_AGREEMENT = {"vit_tiny": 0.995}  # the others 0.999: attention in between is float, and rounds its own way
MOST_LOST = 0.003


@functools.cache
def bench() -> Workbench:
    return Workbench()


@pytest.mark.parametrize(("model", "dataset"), PAIRS)
def test_accuracy_is_that_of_the_card(model: str, dataset: str) -> None:
    case = Case(model, dataset, "dense", "eager")
    found = top1(bench().logits(case), bench().dataset(dataset).test.labels)
    least = LEAST_ACCURACY.get(model, 0.93)
    assert found >= least, f"top-1 {found:.2%}, should be at least {least:.0%}"
    card = bench().card(case)["test_top1"]
    assert abs(found - card) <= 2e-4, f"top-1 {found:.2%}, the card says {card:.2%}"


def clips(runtime: str) -> bool:
    """Does this CPU, which then lacks some integer kernels, clip the runtime's sums of products of 8 bits?"""
    depends = getattr(RUNTIMES[runtime], "depends", lambda _: "")
    return bool(depends(bench().compressed(Case(*PAIRS[0], "static:w8a8", runtime))))


@pytest.mark.parametrize("runtime", INTEGER)
@pytest.mark.parametrize(("model", "dataset"), PAIRS)
def test_int8_is_what_its_simulation_says(model: str, dataset: str, runtime: str) -> None:
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    case = Case(model, dataset, "static:w7a8" if clips(runtime) else "static:w8a8", runtime)
    try:
        made = bench().logits(case)
    except UnavailableError as problem:  # the runtime is here, what it needs for int8 is not
        pytest.skip(str(problem))
    simulated, dense = bench().simulated_logits(case), bench().logits(case.dense)
    labels = bench().dataset(dataset).test.labels
    same = agreement(made, simulated)
    assert same >= LEAST_AGREEMENT.get(model, 0.999), f"{same:.2%} of the predictions agree with the simulation"
    off, dense_off = 1 - same, 1 - agreement(dense, simulated)
    assert off <= dense_off / 4, f"{off:.2%} of the predictions differ from the simulation, dense {dense_off:.2%}"
    detail = kernel_detail(bench().session(case).kernels, bench().compressed(case).quant_plan)
    assert detail["quantized_layers"] > 0, "no layer was quantized"
    floats = detail["float_fallbacks"]
    chooses = clips(runtime) or runtime == "openvino"  # which runs small linear layers in float on some processors
    allowed = chooses and len(floats) < detail["quantized_layers"]
    assert not floats or allowed, f"{floats} ran in float: {detail['kernels']}"
    lost = top1(dense, labels) - top1(made, labels)
    assert lost <= MOST_LOST, f"int8 loses {lost:.2%} of the images, should be at most {MOST_LOST:.1%}"


def test_mutant_scale_is_seen() -> None:
    """Outputs that differ as much as one wrong scale makes them do not pass for the simulation's."""
    model, dataset = PAIRS[0]
    logits = bench().simulated_logits(Case(model, dataset, "static:w8a8", INTEGER[0]))
    wrong = logits * torch.linspace(0.8, 1.2, logits.shape[1])
    assert agreement(wrong, logits) < LEAST_AGREEMENT.get(model, 0.999), "a check that accepts anything"
