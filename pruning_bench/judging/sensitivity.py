"""What one step of a recipe costs, layer by layer: the numbers, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alone:
    """The model when the step is run on one part of it alone.

    Args:
        part: a layer, or a coupling of channels.
        weights: how many weights the part has; of a coupling, how many channels.
        change: what was done to it, in words: "w4a8", "29 of 144 pruned".
        score: accuracy, or whatever the data's score is.
        loss: by how much that is worse than without the step; below zero where it is better.
        sqnr: 10 log10(signal / noise) of the model's output in dB, the model before the step being the signal;
            infinite where nothing changed.
    """

    part: str
    weights: int
    change: str
    score: float
    loss: float
    sqnr: float


@dataclass(frozen=True)
class Sensitivity:
    """One step of a recipe on one model.

    Args:
        model, dataset, recipe: what was asked for.
        step: the last step of the recipe, which is looked at; those before it made the model that it is run on.
        examples: of the selection split, how many.
        score: its name: "top1", that of the data, or "agreement" where there is nothing to compare with.
        before: of the model that the step is run on.
        whole: all parts together.
        parts: in the order of the model.
    """

    model: str
    dataset: str
    recipe: str
    step: str
    examples: int
    score: str
    before: float
    whole: Alone
    parts: tuple[Alone, ...]
