import argparse
import dataclasses
import shlex
import subprocess
import sys

import pytest

from pruning_bench import cli
from pruning_bench.training import command
from pruning_bench.training.loop import TrainConfig


def parse(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(shlex.split(words))


@pytest.fixture
def asked(monkeypatch):
    """What `train_reference` was asked for; it trains nothing."""
    calls = []

    def fake_train_reference(model, dataset, config, **rest):
        calls.append((model, dataset, config, rest))
        rest["progress"]("epoch 1/1", 1, 2)
        rest["report"]("epoch 1/1: done")
        return {"test_top1": 0.9312}

    monkeypatch.setattr(command, "train_reference", fake_train_reference)
    return calls


def test_defaults_are_those_of_the_configuration(asked, capsys):
    status = command.run(parse("resnet20 --dataset fashion_mnist"))
    assert status == 0, f"status {status}, should be 0"
    model, dataset, config, rest = asked[0]
    assert (model, dataset) == ("resnet20", "fashion_mnist"), f"{model} on {dataset}, should be as asked"
    assert config == TrainConfig(), f"{config}, should be {TrainConfig()}"
    assert rest["full"] is True, "should train on the full data"
    assert rest["options"] == {}, f"{rest['options']}, should leave the model's own activation"
    text = capsys.readouterr().out
    assert text == "resnet20 on fashion_mnist: test top-1 93.12%\n", f"{text!r}, should be one line"


ALL = (
    "m --dataset d --epochs 3 --batch 7 --lr 0.25 --optimizer adamw --momentum 0.5 --weight-decay 0.001"
    " --schedule linear --warmup 0.2 --label-smoothing 0.05 --shift 1 --no-flip --amp --seed 9"
    " --activation gelu --init start.safetensors --shipped-data"
)


def test_every_field_has_an_option(asked):
    command.run(parse(f"{ALL} --data-dir /data --out-dir /out --resume --force"))
    _, _, config, rest = asked[0]
    same = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) == field.default]
    assert not same, f"{same} at their default, should be changed by their options"
    assert rest["options"] == {"activation": "gelu"}, f"{rest['options']}, should be gelu"
    found = {key: str(rest[key]) for key in ("full", "init", "data_dir", "out_dir", "resume", "force")}
    expected = {
        "full": "False",
        "init": "start.safetensors",
        "data_dir": "/data",
        "out_dir": "/out",
        "resume": "True",
        "force": "True",
    }
    assert found == expected, f"{found}, should be {expected}"


def check_command_repeats(spell) -> None:
    for words in (ALL, "resnet20 --dataset fashion_mnist", "resnet20 --dataset fashion_mnist --amp --epochs 20"):
        args = parse(words)
        text = spell(args)
        assert text.startswith("pruning-bench train "), f"{text!r}, should be the command"
        again = parse(text.removeprefix("pruning-bench train "))
        assert vars(again) == vars(args), f"{text!r} means {vars(again)}, should mean {vars(args)}"
    text = spell(parse("resnet20 --dataset fashion_mnist"))
    assert text == "pruning-bench train resnet20 --dataset fashion_mnist", f"{text!r}, should leave out defaults"


def mutant_forgets_switched_off(args):
    return command.command_line(args).replace(" --no-flip", "")


def mutant_spells_everything(args):
    return command.command_line(args) + f" --seed {args.seed}"


def test_command_repeats():
    check_command_repeats(command.command_line)


@pytest.mark.parametrize("mutant", [mutant_forgets_switched_off, mutant_spells_everything])
def test_check_command_repeats_rejects(mutant):
    with pytest.raises(AssertionError, match="should"):
        check_command_repeats(mutant)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("resnet21 --dataset fashion_mnist --shipped-data", "'resnet20'"),
        ("resnet20 --dataset fashion_mist --shipped-data", "'fashion_mnist'"),
        ("resnet20 --dataset fashion_mnist --epochs 0", "epochs 0, should be in [1, 1e9]"),
        ("resnet20 --dataset fashion_mnist --seed -1", "seed -1, should be in [0, 9223372036854775808)"),
        ("resnet20 --dataset fashion_mnist --shipped-data --activation rlu", "'relu'"),
        ("resnet20 --dataset fashion_mnist --data-dir /nowhere", "/nowhere"),
        ("resnet20 --dataset fashion_mnist --shipped-data --device abacus", "device 'abacus'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, said, tmp_path, capsys):
    status = cli.main(["train", *shlex.split(words), "--out-dir", str(tmp_path)])
    text = capsys.readouterr().err
    assert status == 2, f"status {status}, should be 2"
    assert said in text, f"{text!r}, should say {said!r}"
    assert text.count("\n") == 1, f"{text!r}, should be one line"
    assert not list(tmp_path.iterdir()), f"{list(tmp_path.iterdir())}, should change nothing"


def test_definitions_are_there_in_a_fresh_process(tmp_path):
    """Whoever ran before in this process has filled the registries already."""
    words = ["train", "resnet2", "--dataset", "fashion_mnist", "--shipped-data", "--out-dir", str(tmp_path)]
    called = [sys.executable, "-m", "pruning_bench.cli", *words]
    done = subprocess.run(called, capture_output=True, text=True, timeout=120, check=False)
    assert "should be 'resnet20'" in done.stderr, f"{done.stderr!r}, should name the closest model"


@pytest.mark.parametrize(
    "words",
    [
        "resnet20",
        "resnet20 --dataset d --optimizer lion",
        "resnet20 --dataset d --lr fast",
        "resnet20 --dataset d --threads 0",
    ],
)
def test_usage_errors_are_status_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2, f"status {caught.value.code}, should be 2"
