"""A user's own examples: tensors without elements that can be read are refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pruning_bench.datasets.given import dataset_from
from pruning_bench.errors import DataError

STRANGE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), "of layout torch.sparse_coo"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "of layout torch.sparse_csr"),
    "meta": (lambda x: x.to("meta"), "on the device meta"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "nested"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "nested"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized"),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is in beta or leaves
@pytest.mark.parametrize("targets", [False, True], ids=["inputs", "targets"])
@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_not_dense_are_refused(kind: str, targets: bool) -> None:
    make, says = STRANGE[kind]
    plain, strange = torch.ones(4, 3), make(torch.ones(4, 3))

    def theirs() -> object:
        test = ((plain,), strange) if targets else ((plain, strange), None)
        return {"test": test, "calibration": test}

    who = "targets" if targets else "input 1"
    with pytest.raises(DataError, match=f"^theirs: test: {who} {re.escape(says)}, should be a dense ") as caught:
        dataset_from(theirs, classify=False)
    assert "\n" not in str(caught.value), f"{caught.value}"


def test_views_are_dense() -> None:
    def theirs() -> object:
        return {"test": ((torch.ones(3, 4).T,), None), "calibration": ((torch.ones(1, 3).expand(4, 3),), None)}

    assert dataset_from(theirs, classify=False).test.values[0].is_contiguous()
