"""The same pruning by this package, torch.nn.utils.prune and Torch-Pruning, in one run: ratios of time and memory.

    python -m pip install "pruning_bench[peers]"
    python benchmarks/peers/pruning.py channels [MODEL ...]      # half the channels of torchvision's models
    python benchmarks/peers/pruning.py masks [MODEL ...]         # global magnitude masks at 90 %
    python benchmarks/peers/pruning.py accuracy [MODEL ...]      # the shipped checkpoints, fine-tuned alike

Every model has a process of its own, in which both sides take turns on fresh copies; one that does not end in time is
killed and said so. Ratios are ours over theirs, of the lower of the times: below 1 is faster.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import page
import torch
from torch import Tensor, nn

from pruning_bench import compress
from pruning_bench.conformance.torchvision_table import build
from pruning_bench.contracts import Context
from pruning_bench.errors import one_line
from pruning_bench.graphs import export
from pruning_bench.metrics.cost import count_cost
from pruning_bench.metrics.memory import peak_memory
from pruning_bench.pruning.methods.magnitude import Magnitude

ROUNDS = 3
CHANNELS = ("resnet18", "resnet50", "densenet201", "shufflenet_v2_x1_0", "swin_t", "maxvit_t")
MASKS = ("resnet50", "vit_l_16")
CHECKPOINTS = ("image_classifier", "resnet20")
OURS = ("l1_filter:0.5", "group_norm:0.5,p=1")  # the second one scores whole groups of layers, as Torch-Pruning does
SEEDS = (0, 1, 2)
PEERS = {"channels": ["torch-pruning"], "masks": [], "accuracy": ["torch-pruning"]}


def channels(name: str, side: str) -> dict[str, Any]:
    """Half the channels of every layer but the last: seconds, MACs left, and whether the result runs.

    Args:
        side: "ours", "theirs", or "both" for both in turns.
    """
    model, images = build(name)
    for module in model.modules():  # an auxiliary head, which Torch-Pruning does not see
        if getattr(module, "aux_logits", False):
            module.aux_logits = False
    whole = count_cost(model, images).macs
    tools = {"ours": lambda: _ours(model, images), "theirs": lambda: _theirs(copy.deepcopy(model), images)}
    times: dict[str, list[float]] = {"export": []}
    found: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for tool, prune in tools.items():
            if side in (tool, "both"):
                started = time.perf_counter()
                pruned = prune()
                times.setdefault(tool, []).append(time.perf_counter() - started)
                with torch.no_grad():
                    pruned(*images)
                found[f"{tool}_macs"] = count_cost(pruned, images).macs / whole
        if side in ("ours", "both"):
            started = time.perf_counter()
            export(model, images)
            times["export"].append(time.perf_counter() - started)
    return {**found, **{tool: min(taken) for tool, taken in times.items() if taken}}


def _ours(model: nn.Module, images: tuple[Tensor, ...], recipe: str = OURS[0]) -> nn.Module:
    return compress(model, recipe, example_inputs=images).model


def _theirs(model: nn.Module, images: tuple[Tensor, ...], share: float = 0.5) -> nn.Module:
    import torch_pruning

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.BasePruner(
        model, images[0], importance, pruning_ratio=share, ignored_layers=[last], num_heads=heads
    )
    pruner.step()
    return model


def masks(name: str, side: str) -> dict[str, Any]:
    """Global magnitude masks that keep a tenth: seconds, bytes of memory on top, and how many entries differ.

    Ours only decides (`plan`); theirs also keeps the weights beside their product with a float mask.
    """
    from torch.nn.utils import prune

    model, images = build(name)
    method, context = Magnitude(scope="global"), Context(images, torch.Generator())
    copied = copy.deepcopy(model)
    prunable = list(method.plan(model, 0.9, context).masks)
    named = {f"{path}.{p}".lstrip("."): (m, p) for path, m in copied.named_modules()
             for p in dict(m.named_parameters(recurse=False))}  # fmt: skip
    places = [named[name] for name in prunable]
    weights = [(module, parameter, getattr(module, parameter).detach().clone()) for module, parameter in places]

    def theirs() -> None:
        prune.global_unstructured(places, pruning_method=prune.L1Unstructured, amount=0.9)

    def undo() -> None:
        for module, parameter, value in weights:
            prune.remove(module, parameter)
            with torch.no_grad():
                getattr(module, parameter).copy_(value)

    sides: dict[str, Callable[[], object]] = {"ours": lambda: method.plan(model, 0.9, context), "theirs": theirs}
    times: dict[str, list[float]] = {tool: [] for tool in sides}
    memory = {}
    for turn in range(ROUNDS + 1):
        for tool, run in sides.items():
            started = time.perf_counter()
            if turn:
                run()
                times[tool].append(time.perf_counter() - started)
            else:
                memory[f"{tool}_bytes"] = peak_memory(run).bytes
            if tool == "theirs" and turn < ROUNDS:
                undo()
    kept = method.plan(model, 0.9, context).masks
    other = {name: getattr(named[name][0], f"{named[name][1]}_mask").bool() for name in prunable}
    differ = sum(int((kept[name] != other[name]).sum()) for name in prunable)
    return {**memory, **{tool: min(taken) for tool, taken in times.items()}, "differ": differ}


def accuracy(name: str, side: str) -> dict[str, Any]:
    """Half the channels of a shipped checkpoint, then one epoch on the shipped training images: top-1 on the selection.

    Both sides are fine-tuned by the same step with the same seeds. The share of channels that Torch-Pruning removes is
    the same; what its couplings make of it is its own.
    """
    from pruning_bench.datasets.contract import load_dataset
    from pruning_bench.discover import discover
    from pruning_bench.metrics.accuracy import top1
    from pruning_bench.models.checkpoints import SHIPPED, checkpoint_path, load_checkpoint

    discover()
    data = load_dataset("fashion_mnist")
    dense = load_checkpoint(checkpoint_path(name, "fashion_mnist", SHIPPED)).eval()
    example = data.train.arguments(slice(0, 1))
    inputs, labels = data.selection.arguments(slice(0, len(data.selection))), data.selection.labels
    whole = count_cost(dense, example).macs

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            return top1(torch.cat([model(part) for part in inputs[0].split(100)]), labels)

    found: dict[str, Any] = {"dense": score(dense)}
    two = tuple(torch.cat([value, value]) for value in example)
    for tool in (*OURS, "theirs"):
        shrunk = _theirs(copy.deepcopy(dense), two) if tool == "theirs" else _ours(dense, example, tool)
        found[f"{tool}_macs"] = count_cost(shrunk, example).macs / whole
        tuned = [
            compress(shrunk, "finetune:1", example_inputs=example, train=data.train, seed=seed).model for seed in SEEDS
        ]
        found[tool] = [score(model.eval()) for model in tuned]
    return found


WORK: dict[str, tuple[Callable[[str, str], dict[str, Any]], Sequence[str]]] = {
    "channels": (channels, CHANNELS),
    "masks": (masks, MASKS),
    "accuracy": (accuracy, CHECKPOINTS),
}


def child(work: str, name: str, side: str, seconds: float) -> dict[str, Any]:
    """What a fresh process of this script finds."""
    return page.child(__file__, [work, name, "--child", side], seconds)


def channel_row(name: str, seconds: float) -> list[str]:
    """Both in turns; where that fails, each alone, so that one side's failure does not hide the other's."""
    found = child("channels", name, "both", seconds)
    if "problem" in found:
        parts = {side: child("channels", name, side, seconds) for side in ("ours", "theirs")}
        found = {k: v for part in parts.values() for k, v in part.items() if k != "problem"}
        problems = {side: part["problem"] for side, part in parts.items() if "problem" in part}
    else:
        problems = {}
    cells = [name]
    for side in ("ours", "theirs"):
        cells.append(problems.get(side) or f"{found[side]:.2f} s, {found[f'{side}_macs']:.1%} of the MACs")
    both = "ours" in found and "theirs" in found
    after = found["ours"] - found["export"] if "ours" in found else 0.0
    ratios = [f"{ours / found['theirs']:.2f}" for ours in (found["ours"], after)] if both else ["-", "-"]
    return [*cells, *ratios]


def mask_row(name: str, seconds: float) -> list[str]:
    """Ratios of time and of memory on top of the model's own."""
    found = child("masks", name, "both", seconds)
    if "problem" in found:
        return [name, found["problem"], *["-"] * 4]
    sides = [f"{found[side]:.2f} s, {(found[f'{side}_bytes'] or 0) / 1e6:,.0f} MB" for side in ("ours", "theirs")]
    ratio = found["ours_bytes"] / found["theirs_bytes"] if found["theirs_bytes"] else float("nan")
    return [name, *sides, f"{found['ours'] / found['theirs']:.3f}", f"{ratio:.3f}", str(found["differ"])]


def accuracy_row(name: str, seconds: float) -> list[str]:
    """Mean and worst top-1 over the seeds, beside the MACs left."""
    found = child("accuracy", name, "both", seconds)
    if "problem" in found:
        return [name, found["problem"], *["-"] * (len(OURS) + 1)]
    cells = [name, f"{found['dense']:.2%}"]
    for side in (*OURS, "theirs"):
        mean, worst = sum(found[side]) / len(found[side]), min(found[side])
        cells.append(f"{mean:.2%} (worst {worst:.2%}), {found[f'{side}_macs']:.1%} of the MACs")
    return cells


ROWS: dict[str, tuple[Callable[[str, float], list[str]], list[str]]] = {
    "channels": (channel_row, ["model", "ours", "Torch-Pruning", "time, whole", "time after our export"]),
    "masks": (mask_row, ["model", "ours", "torch.nn.utils.prune", "time", "memory", "entries that differ"]),
    "accuracy": (accuracy_row, ["model", "dense", *(f"`{recipe}`" for recipe in OURS), "Torch-Pruning"]),
}


def main() -> None:
    """Prints one table."""
    parser = page.options(__doc__, list(WORK), 90.0, {"choices": ["ours", "theirs", "both"]})
    args = parser.parse_args()
    run, usual = WORK[args.work]
    if args.child:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        try:
            print(json.dumps(run(args.models[0], args.child)))
        except Exception as problem:
            sys.exit(f"{type(problem).__name__}: {one_line(problem)}")
        return
    page.check_page(args, "pruning")
    peers = page.versions(parser, ("torch", *PEERS[args.work]))
    row, header = ROWS[args.work]
    rows = [row(name, args.seconds) for name in args.models or usual]
    page.report(args, "pruning", header, rows, [f"{peers}; one thread, the lowest of {ROUNDS} times"])


if __name__ == "__main__":
    main()
