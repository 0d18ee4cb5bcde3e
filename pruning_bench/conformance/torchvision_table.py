"""Classification models of torchvision, pruned to half width and proved right: the rows of `docs/torchvision.md`.

`python -m pruning_bench.conformance.torchvision_table docs/torchvision.md [MODEL ...]` measures and writes the table;
rows of models that are not named stay as they are in the file. Of the largest models only the shapes are checked, on
the device meta, where tensors have no values.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning_bench.conformance.plan_checks import outputs
from pruning_bench.conformance.strategies import Subject, other_inputs, randomise
from pruning_bench.engine import compress
from pruning_bench.metrics.cost import count_cost
from pruning_bench.pruning.channels import keep_channels
from pruning_bench.pruning.contract import ChannelPlan
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.shrink import apply_channels, zero_channels

LEVEL = 0.5
RECIPE = f"l1_filter:{LEVEL}"
LARGE = ("regnet_y_128gf", "vit_h_14")  # of 640 million parameters: each twin takes 5 GB in float64
SIZES = {"inception_v3": 299}  # the least that its auxiliary head, which training runs, can take
SIZE = 224
HEADER = "| model | MACs left | parameters left | float32 error | float64 error | dimensions kept, and why |"


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Args:
        macs, params: shares left, in (0, 1].
        error32: largest difference of the shrunk model from its masked twin over the largest output, in float32; None
            where only shapes were checked.
        error64: the same in float64, over the largest difference between the outputs of two inputs.
        kept: reason -> number of producing dimensions that it keeps whole or in part.
    """

    model: str
    macs: float
    params: float
    error32: float | None
    error64: float | None
    kept: Mapping[str, int]

    def __str__(self) -> str:
        """A line of the table."""
        kept = "; ".join(f"{count} {reason}" for reason, count in sorted(self.kept.items()))
        shares = f"{self.macs:.1%} | {self.params:.1%}".replace("%", " %")
        errors = " | ".join(
            "shapes only" if error is None else f"{error:.1e}" for error in (self.error32, self.error64)
        )
        return f"| {self.model} | {shares} | {errors} | {kept} |"


def build(name: str, device: str = "cpu") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of torchvision with random weights, its auxiliary heads included, and two images for it.

    Args:
        device: "meta" takes the values from both; the builders of some models need them.
    """
    import torchvision  # type: ignore[import-untyped]

    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = SIZES.get(name, SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return model.to(device), (images.to(device),)


def twin_errors(model: nn.Module, plan: ChannelPlan, images: tuple[Tensor, ...]) -> tuple[float, float]:
    """(float32 error over the largest output, float64 error over the signal), every tensor of the model randomised.

    The signal is the largest difference between the outputs of two inputs: an output that does not depend on its input
    proves nothing.
    """
    model = randomise(model, images, 0)
    single = _differences(model, plan, images)
    double = _differences(copy.deepcopy(model).double(), plan, tuple(image.double() for image in images))
    return single[0] / single[1], double[0] / double[2]


def _differences(model: nn.Module, plan: ChannelPlan, images: tuple[Tensor, ...]) -> tuple[float, float, float]:
    subject = Subject("torchvision", model, images)
    other = Subject("torchvision", model, other_inputs(images, torch.Generator().manual_seed(2)))
    small, twin = apply_channels(model, plan), zero_channels(model, plan)
    found, expected = outputs(small, subject), outputs(twin, subject)
    size, signal = float(expected.abs().max()), float((expected - outputs(twin, other)).abs().max())
    return float((found - expected).abs().max()), max(size, 1e-300), max(signal, 1e-300)


def row(name: str) -> Row:
    """Prunes one model and compares it with its masked twin."""
    model, images = build(name)
    made = compress(model, RECIPE, example_inputs=images)
    plan = made.plans[0]
    assert isinstance(plan, ChannelPlan), f"{RECIPE} gave {type(plan).__name__}"
    return _row(name, model, made.model, images, plan, twin_errors(model, plan, images))


def shapes_row(name: str) -> Row:
    """Removes half of the channels of one model without values, and runs what is left: sizes are all that is checked.

    Without values no channel scores higher than another; which ones go changes no size.
    """
    model, images = build(name, "meta")
    found = find_couplings(model, images)
    keep = keep_channels({unit: torch.ones(len(units)) for unit, units in found.groups.items()}, LEVEL, "layer")
    plan = found.plan(keep)
    return _row(name, model, apply_channels(model, plan), images, plan, (None, None))


def _row(
    name: str,
    model: nn.Module,
    small: nn.Module,
    images: tuple[Tensor, ...],
    plan: ChannelPlan,
    errors: tuple[float | None, float | None],
) -> Row:
    before, after = count_cost(model, images), count_cost(small, images)
    kept = Counter(reason.partition(" [")[0] for reason in plan.untouched.values())
    return Row(name, after.macs / before.macs, after.params / before.params, *errors, kept)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Puts the rows into the table, in the order of their names; other rows of the file stay."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    known = {
        line.split("|")[1].strip(): line
        for line in lines
        if line.startswith("| ") and line[2] != ":" and line != HEADER
    }
    known.update({one.model: str(one) for one in rows})
    text = [
        f"# Classification models of torchvision, `{RECIPE}`",
        "",
        "Written by `python -m pruning_bench.conformance.torchvision_table docs/torchvision.md`.",
        f"Random weights, images of {SIZE} x {SIZE} ({', '.join(f'{name} {size}' for name, size in SIZES.items())});",
        "only the output layer is kept by intent. Errors compare the shrunk model with its twin, every parameter",
        "and buffer randomised: in float32 over the largest output, in float64 over the largest difference between the",
        f"outputs of two inputs. Of {' and '.join(LARGE)} only the shapes are checked, on the device meta.",
        "",
        HEADER,
        "| :-- | --: | --: | --: | --: | :-- |",
        *(known[name] for name in sorted(known)),
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the models that are named, or all, and writes each row as soon as it is there."""
    import torchvision

    parser = argparse.ArgumentParser(description="the table of all torchvision classification models")
    parser.add_argument("path", type=Path)
    parser.add_argument("models", nargs="*")
    chosen = parser.parse_args(arguments)
    for name in chosen.models or torchvision.models.list_models(module=torchvision.models):
        write(chosen.path, [shapes_row(name) if name in LARGE else row(name)])


if __name__ == "__main__":
    main()
