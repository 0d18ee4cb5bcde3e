"""The arguments of `pruning-bench train MODEL --dataset DATASET` and what they start."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path

import torch
from rich.console import Console

from pruning_bench.discover import discover
from pruning_bench.errors import UnavailableError
from pruning_bench.progress import progress_bar
from pruning_bench.training.loop import TrainConfig
from pruning_bench.training.reference import train_reference

_HELP = {
    "epochs": "passes over the training split",
    "batch": "examples a step",
    "lr": "highest learning rate",
    "optimizer": "sgd (Nesterov momentum) or adamw",
    "momentum": "of sgd",
    "weight_decay": "on weights, not on biases and norms",
    "schedule": "after the warm-up",
    "warmup": "share of all steps in which the rate rises",
    "label_smoothing": "share of the target spread over the classes",
    "shift": "images are moved by up to this many pixels",
    "flip": "mirror half of the images",
    "amp": "forward pass in bfloat16",
    "seed": "of weights, order and augmentation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`; an option for each field of `TrainConfig`."""
    parser.add_argument("model", help="a registered model")
    parser.add_argument("--dataset", required=True, help="a registered data set")
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        flag, kind = f"--{field.name.replace('_', '-')}", hints[field.name]
        text = f"{_HELP[field.name]} (default: %(default)s)"
        if kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=field.default, help=_HELP[field.name])
        elif typing.get_origin(kind) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(kind), default=field.default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=text)
    parser.add_argument("--activation", help="activation function of the model (default: the model's own)")
    parser.add_argument("--data-dir", type=Path, help="folder of the full data set (default: the usual places)")
    parser.add_argument("--shipped-data", action="store_true", help="train on the shipped 5,000 images only")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from its weights (default: random ones)")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("checkpoints"), help="folder of checkpoint and card (%(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted training stopped")
    parser.add_argument(
        "--force", action="store_true", help="overwrite a checkpoint, and the state of an interrupted training"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: torch's)")


def run(args: argparse.Namespace) -> int:
    """Trains as the parsed arguments say; errors of the suite pass through to the caller."""
    discover()
    config = TrainConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)})
    _require_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        card = train_reference(
            args.model,
            args.dataset,
            config,
            options={} if args.activation is None else {"activation": args.activation},
            data_dir=args.data_dir,
            full=not args.shipped_data,
            init=args.init,
            out_dir=args.out_dir,
            resume=args.resume,
            force=args.force,
            device=args.device,
            command=command_line(args),
            progress=progress,
            report=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    print(f"{args.model} on {args.dataset}: test top-1 {card['test_top1']:.2%}")
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The shortest command that repeats this training: options at their default are left out."""
    words = ["pruning-bench train", args.model, "--dataset", args.dataset]
    for field in dataclasses.fields(TrainConfig):
        value, flag = getattr(args, field.name), field.name.replace("_", "-")
        if value != field.default:
            words += [f"--{flag}" if value is True else f"--no-{flag}" if value is False else f"--{flag} {value}"]
    words += [] if args.activation is None else ["--activation", args.activation]
    words += [] if args.init is None else ["--init", args.init.name]
    words += ["--shipped-data"] if args.shipped_data else []
    return " ".join(words)


def _positive(text: str) -> int:
    """A count for argparse, which turns a ValueError into a usage error."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}, should be at least 1")
    return int(text)


def _require_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        found = f"device {name!r} ({str(error).splitlines()[0]})"
        raise UnavailableError("train", found, "a device of this machine, such as cpu") from None
