"""The workbench: outputs come in the order of the examples, from the session that is timed, made once."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_bench import workbench
from pruning_bench.cases import Case, parse_id
from pruning_bench.datasets.contract import Dataset, Tensors
from pruning_bench.errors import DataError, ModelError
from pruning_bench.registry import MODELS, RUNTIMES
from pruning_bench.runtimes.contract import Session
from pruning_bench.workbench import QUALITY_BATCH, Workbench, run_own

CASE = parse_id("image_classifier-fashion_mnist/dense/eager")
COUNT = 3 * QUALITY_BATCH + 5


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """With few test images, and four cores to share them out to."""
    monkeypatch.setattr(workbench, "cores", lambda: 4)
    made = Workbench()
    data: Dataset = made.dataset(CASE.dataset)
    test = replace(data.test, images=data.test.images[:COUNT], labels=data.test.labels[:COUNT])
    made._made["dataset", CASE.dataset] = replace(data, test=test)
    return made


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "the number of threads is not as it was"


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_outputs_come_in_the_order_of_the_examples(bench: Workbench, runtime: str) -> None:
    case = replace(CASE, runtime=runtime)
    if reason := RUNTIMES[runtime].available():
        pytest.skip(reason)
    expected = bench.session(case).run(bench.dataset(case.dataset).test.inputs())
    found = bench.logits(case)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), f"off by {float((found - expected).abs().max())}"


def test_outputs_are_those_of_the_session_that_is_timed_and_made_once(bench: Workbench) -> None:
    case = replace(CASE, threads=2)
    first = bench.logits(case)
    assert bench.logits(replace(case, threads=1)) is first, "accuracy does not depend on threads"
    keys = [key for key in bench._made if key[0] == "session"]
    assert [key[-1] for key in keys] == [2], f"sessions {keys}, should be the one of two threads"


def test_no_more_examples_run_than_are_asked_for(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    outputs = bench._outputs
    monkeypatch.setattr(bench, "_outputs", lambda run, case, rows: ran.append(rows.stop) or outputs(run, case, rows))
    few = bench.logits(CASE, QUALITY_BATCH)
    assert ran == [QUALITY_BATCH], f"batches up to {ran}"
    assert bench.simulated_logits(replace(CASE, runtime="onnxruntime"), QUALITY_BATCH) is few, "made again"
    whole = bench.logits(CASE)
    assert len(whole) == COUNT, f"{len(whole)} examples, should be all"
    assert torch.equal(whole[:QUALITY_BATCH], few), "of a part other outputs"
    ran.clear()
    assert torch.equal(bench.logits(CASE, 7), whole[:7]), "not the first ones"
    assert not ran, f"{ran}: all of them were there"


@pytest.mark.parametrize("batch", [1, 2])
def test_dynamic_ranges_are_those_of_the_batch_that_is_timed(bench: Workbench, batch: int) -> None:
    """Mutant: a larger batch, whose one range is coarser and depends on what else is in it.

    One at a time they may run together, so that sums of floats before a layer are rounded otherwise.
    """
    case = replace(CASE, recipe="dynamic:w8a8", batch=batch)
    test, run = bench.dataset(case.dataset).test, bench.session(case).run
    alone = torch.cat([run(*test.arguments(slice(start, start + batch))) for start in range(0, COUNT, batch)])
    together = run(*test.arguments())
    mutant = float((together - alone).abs().mean())
    assert mutant > 0, "the batch has no say here, so this tests nothing"
    for found in (bench.logits(case), bench.simulated_logits(case)):
        error = float((found - alone).abs().mean())
        assert error <= (mutant / 100 if batch == 1 else 0), f"off by {error}, other batches by {mutant}"


@pytest.mark.parametrize(("concurrent", "most"), [(True, 4), (False, 1)])
def test_only_sessions_that_allow_it_run_several_batches_at_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, concurrent: bool, most: int
) -> None:
    pools: list[int] = []
    whole = workbench.ThreadPoolExecutor
    monkeypatch.setattr(workbench, "ThreadPoolExecutor", lambda n, **rest: pools.append(n) or whole(n, **rest))

    def session(case: Case) -> Session:
        def run(*inputs: Tensor) -> Tensor:
            return inputs[0].flatten(1)[:, :10]

        return Session(run, bind=lambda *inputs: lambda: None, concurrent=concurrent)

    monkeypatch.setattr(bench, "session", session)
    bench.logits(CASE)
    assert pools == [most], f"{pools} workers, should be {most}"


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (lambda x: x.flatten(1)[:, :10].view(7, 3), "RuntimeError: shape '[7, 3]' is invalid"),
        (lambda x: x.flatten(1)[1:, :10], "of shape [4, 10] for 5 examples"),
        (lambda x: x.flatten(1)[:, :10].long(), "outputs torch.int64"),
        (lambda x: (x,), "outputs tuple for 5 examples"),
    ],
    ids=["raises", "a row less", "integers", "a tuple"],
)
def test_what_an_own_model_gets_wrong_on_its_last_batch_is_one_line(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, last: Callable[[Tensor], Any], says: str
) -> None:
    def run(x: Tensor) -> Any:
        return x.flatten(1)[:, :10] if len(x) == QUALITY_BATCH else last(x)

    monkeypatch.setitem(MODELS._items, CASE.model, replace(MODELS[CASE.model], own=True))
    monkeypatch.setattr(bench, "session", lambda case: Session(run, bind=lambda *inputs: lambda: None))
    with pytest.raises(ModelError, match=re.escape(says)) as raised:
        bench.logits(CASE)
    assert "\n" not in str(raised.value), str(raised.value)


@pytest.mark.parametrize("spoils", [True, False])
def test_only_inputs_that_spoil_outputs_are_refused(bench: Workbench, spoils: bool) -> None:
    """A mask may be infinite: minus infinity is what softmax leaves out."""
    mask = torch.zeros(20, 4)
    mask[13, :] = mask[15, :2] = -torch.inf
    mask[13, 0] = -torch.inf if spoils else 0.0
    made: Dataset = bench.dataset(CASE.dataset)
    bench._made["dataset", CASE.dataset] = replace(made, test=Tensors((torch.ones(20, 4), mask)))

    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x + mask).softmax(1)

    if not spoils:
        bench._check_inputs(Attention(), CASE, "theirs: test", "here")
        return
    with pytest.raises(DataError, match=r"theirs: test: input 1 of example 13 NaN or infinite, .* \[here\]"):
        bench._check_inputs(Attention(), CASE, "theirs: test", "here")


def test_an_own_model_that_works_in_place_leaves_the_data(bench: Workbench) -> None:
    x = torch.ones(2, 3)
    assert bench.dataset(CASE.dataset), "models are known from here on"
    made = run_own(MODELS[CASE.model], lambda value: value.mul_(2), (x,))
    assert isinstance(made, Tensor), f"{made}"
    assert made.sum() == 12, f"{made}"
    assert x.sum() == 6, f"the data is {x} now"


def test_a_quantized_model_is_compared_with_what_was_quantized(bench: Workbench) -> None:
    quantized = replace(CASE, recipe="static:w8a8")
    dense = bench.logits(CASE)
    assert torch.equal(bench.float_logits(quantized), dense), "nothing but quantization: the dense model"
    assert torch.equal(bench.float_logits(quantized, 3), dense[:3]), "of the first three examples"
    combined = replace(CASE, recipe="l1_filter:0.5+static:w8a8")
    pruned = bench.logits(replace(CASE, recipe="l1_filter:0.5"))
    found = bench.float_logits(combined)
    assert torch.allclose(found, pruned, rtol=1e-4, atol=1e-4), f"off by {float((found - pruned).abs().max())}"
    assert not torch.allclose(found, bench.logits(CASE), rtol=1e-2), "the dense model's instead"
