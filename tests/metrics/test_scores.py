"""How alike outputs are: one mean, wherever it is asked for."""

import pytest
import torch

from pruning_bench import comparing
from pruning_bench.judging.policy import Policy
from pruning_bench.judging.scores import policy_of, with_margin
from pruning_bench.metrics.contract import Score
from pruning_bench.metrics.scores import cosine_agreement, similarity
from pruning_bench.records import Measurement
from pruning_bench.tasks import Scored

NAN = float("nan")


def test_outputs_that_are_not_finite_are_as_unlike_as_can_be() -> None:
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[NAN, 0.0], [2.0, 2.0]])
    assert similarity(a, a) == pytest.approx(1), "equal ones"
    assert similarity(b, a) == pytest.approx(0), "one at -1, one at 1"


def test_compare_and_the_suite_agree_on_outputs_that_are_not_finite() -> None:
    """Mutant: the mean of the cosines as they are, which is NaN in one of the two."""
    finite = Score("cosine_agreement", lambda a, b: (a - b).nan_to_num(9).abs().mean(1), "higher", "dense", 0.1)
    a, b = torch.eye(3), torch.tensor([[NAN, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    (_, other), _ = comparing._scores(finite, a, b, None)
    assert other["similarity"] == Scored(cosine_agreement).alike(b, a) == pytest.approx(1 / 3), f"{other}"


def test_a_score_has_one_policy() -> None:
    recorded = Measurement("case", "ssim", 0.9, "1", "higher", "paired", detail={"margin": 0.02})
    assert policy_of(recorded, Policy()) == with_margin(Policy(), 0.02)
    assert with_margin(Policy(), 0.02).collapse_margin != Policy().collapse_margin, "in another unit than the margin"
