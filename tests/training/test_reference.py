import dataclasses
import json

import pytest
import torch
from torch import nn

from pruning_bench.datasets.contract import Dataset, ReferenceDataset, Split
from pruning_bench.datasets.splits import digest
from pruning_bench.errors import CheckpointError, ModelError
from pruning_bench.models.checkpoints import load_checkpoint, read_card
from pruning_bench.models.contract import ReferenceModel
from pruning_bench.registry import DATASETS, MODELS
from pruning_bench.training import reference as module
from pruning_bench.training.evaluation import evaluate
from pruning_bench.training.loop import TrainConfig
from pruning_bench.training.reference import seeded_model, train, train_reference

CONFIG = TrainConfig(epochs=3, batch=16, lr=0.05)


def invented(count: int, seed: int) -> Split:
    """Images of 8 x 8 that are brighter above (class 0) or below (class 1)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 4 * label : 4 * label + 4] += 150
    return Split(images, labels, torch.tensor([0.4]), torch.tensor([0.3]))


def dataset() -> Dataset:
    splits = invented(60, 0), invented(20, 1), invented(30, 2)
    return Dataset("invented", ("above", "below"), *splits, digest(splits), "memory")


def build(*, num_classes=2, in_channels=1, width=4):
    norm = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(norm, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * width, num_classes))


@pytest.fixture(autouse=True)
def registered():
    with (
        MODELS.temporarily("tiny", ReferenceModel("tiny", build)),
        DATASETS.temporarily("invented", ReferenceDataset("invented", lambda folder, full: dataset())),
    ):
        yield


def fresh() -> nn.Module:
    return seeded_model("tiny", {}, 0)


class StoppedError(Exception):
    """What interrupts a training in these tests."""


def stop_after(epochs: int):
    def report(line: str) -> None:
        if line.startswith(f"epoch {epochs}/"):
            raise StoppedError

    return report


def check_resume(run, folder, optimizer: str) -> None:
    """An interrupted and resumed training ends in exactly the weights and figures of an uninterrupted one."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    whole, parts = fresh(), fresh()
    history = run(whole, dataset(), config)
    for epochs in (1, 2):
        parts = seeded_model("tiny", {}, 100 + epochs)  # what a new process starts from must not matter
        if epochs == 1:
            parts = fresh()
        with pytest.raises(StoppedError):
            run(parts, dataset(), config, state=folder / "s", resume=True, report=stop_after(epochs))
    parts = seeded_model("tiny", {}, 99)
    resumed = run(parts, dataset(), config, state=folder / "s", resume=True)
    for name, value in whole.state_dict().items():
        found = parts.state_dict()[name]
        assert torch.equal(found, value), (
            f"{optimizer}: {name} differs by {(found - value).abs().max()}, should be equal"
        )
    assert resumed == history, f"{optimizer}: history {resumed}, should be {history}"


def mutant_starts_over(model, data, config, *, resume=False, **options):
    return train(model, data, config, **options)


def mutant_forgets_momentum(model, data, config, **options):
    original = module.load_state

    def load_weights_only(path, model, optimizer, identity):
        other = module.make_optimizer(model, config)
        return original(path, model, other, identity)

    module.load_state = load_weights_only
    try:
        return train(model, data, config, **options)
    finally:
        module.load_state = original


def mutant_one_stream_of_randomness(model, data, config, **options):
    """Shuffles by a generator that a resumed process starts anew."""
    original, stream = module.train_epoch, torch.Generator().manual_seed(0)

    def epoch(model, split, optimizer, config, number, progress=None, **feed):
        seed = int(torch.randint(2**31, (), generator=stream))
        return original(model, split, optimizer, dataclasses.replace(config, seed=seed), number, progress, **feed)

    module.train_epoch = epoch
    try:
        return train(model, data, config, **options)
    finally:
        module.train_epoch = original


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume(tmp_path, optimizer):
    check_resume(train, tmp_path, optimizer)


@pytest.mark.parametrize("mutant", [mutant_starts_over, mutant_forgets_momentum, mutant_one_stream_of_randomness])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_check_resume_rejects(tmp_path, mutant, optimizer):
    with pytest.raises(AssertionError, match="should be equal"):
        check_resume(mutant, tmp_path, optimizer)


@pytest.fixture
def state(tmp_path):
    """The state of a training that was stopped after its first epoch."""
    path = tmp_path / "s"
    with pytest.raises(StoppedError):
        train(fresh(), dataset(), CONFIG, identity={"model": "tiny"}, state=path, report=stop_after(1))
    return path


def resume(path, *, config=CONFIG, model=None, identity=None, data=None):
    identity = {"model": "tiny"} if identity is None else identity
    return train(model or fresh(), data or dataset(), config, identity=identity, state=path, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": dataclasses.replace(CONFIG, lr=0.01)}, "lr 0.01, should be 0.05, as when it was interrupted"),
        ({"config": dataclasses.replace(CONFIG, seed=4)}, "seed 4, should be 0"),
        ({"config": dataclasses.replace(CONFIG, epochs=9)}, "epochs 9, should be 3"),
        ({"identity": {"model": "other"}}, "model other, should be tiny"),
        ({"data": dataclasses.replace(dataset(), digest="0")}, "data_digest 0, should be"),
        ({"model": build(width=5)}, "should be the same model"),
    ],
    ids=["lr", "seed", "epochs", "model", "data", "shapes"],
)
def test_a_state_of_another_training_is_refused(state, change, said):
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=said) as caught:
        resume(state, **change)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"
    assert state.read_bytes() == before, "the state changed, should be left as it was"


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_state_is_refused(state, content):
    state.write_bytes(state.read_bytes()[:-9] if content is None else content)
    with pytest.raises(CheckpointError, match="unreadable") as caught:
        resume(state)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"


def test_the_state_is_whole_when_saving_breaks(state, monkeypatch):
    from pruning_bench.training import state as states

    before = state.read_bytes()

    def breaks(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(states, "save_file", breaks)
    with pytest.raises(OSError, match="disk full"):
        resume(state)
    assert state.read_bytes() == before, "the state changed, should be the last whole one"


class Watched(Split):
    """A split that may not be looked at."""

    def __getattribute__(self, name):
        if name in ("images", "labels", "inputs", "batches", "sample"):
            raise AssertionError(f"looked at {name} of the test split, should not")
        return super().__getattribute__(name)


def check_never_looks_at_the_test(run) -> None:
    data = dataset()
    run(fresh(), dataclasses.replace(data, test=Watched(*vars(data.test).values())), CONFIG)


def mutant_picks_by_the_test(model, data, config):
    train(model, data, config)
    evaluate(model, data.test)


def test_never_looks_at_the_test():
    check_never_looks_at_the_test(train)


def test_check_never_looks_rejects_mutant_picks_by_the_test():
    with pytest.raises(AssertionError, match="looked at"):
        check_never_looks_at_the_test(mutant_picks_by_the_test)


def check_weights_are_those_of_the_last_epoch(run) -> None:
    model, data = fresh(), dataset()
    history = run(model, data, CONFIG)
    found = evaluate(model, data.selection)
    assert [row["epoch"] for row in history] == [1, 2, 3], f"{history}, should have a row for each epoch"
    last = history[-1]
    assert abs(found.loss - last["selection_loss"]) < 1e-6, f"loss {found.loss}, should be {last['selection_loss']}"
    assert not model.training, "training mode, should be left in evaluation mode"
    layout = model[0][0].weight.is_contiguous()
    assert layout, f"contiguous is {layout}, should be as in a fresh model"


def mutant_one_epoch_more(model, data, config):
    history = train(model, data, config)
    train(model, data, config)
    return history


def test_weights_are_those_of_the_last_epoch():
    check_weights_are_those_of_the_last_epoch(train)


def test_check_last_epoch_rejects_mutant_one_epoch_more():
    with pytest.raises(AssertionError, match="should be"):
        check_weights_are_those_of_the_last_epoch(mutant_one_epoch_more)


def test_a_seeded_model_depends_on_its_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = (seeded_model("tiny", {}, seed)[3].weight for seed in (0, 0, 1))
    assert torch.equal(one, two), "seed 0 gives different weights, should give equal ones"
    assert not torch.equal(one, other), "seeds 0 and 1 give equal weights, should differ"
    assert torch.equal(before, torch.get_rng_state()), "the global generator moved, should be as before"


def test_train_reference_writes_what_it_trained(tmp_path):
    lines = []
    card = train_reference(
        "tiny", "invented", CONFIG, options={"width": 3}, out_dir=tmp_path, command="again", report=lines.append
    )
    path = tmp_path / "tiny-invented.safetensors"
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["tiny-invented.json", "tiny-invented.safetensors"], f"{files}, should be weights and card"
    assert read_card(path) == json.loads(json.dumps(card)), f"{read_card(path)}, should be {card}"
    found = evaluate(load_checkpoint(path), dataset().test)
    assert found.top1 == card["test_top1"], f"top-1 {found.top1}, should be {card['test_top1']}"
    assert found.confusion.tolist() == card["test_confusion"], f"{found.confusion}, should be {card['test_confusion']}"
    expected = {
        "model": "tiny",
        "dataset": "invented",
        "options": {"num_classes": 2, "in_channels": 1, "width": 3},
        "command": "again",
        "training": dataclasses.asdict(CONFIG),
        "seed": 0,
        "data_digest": dataset().digest,
        "train_examples": 60,
        "selection_top1": card["history"][-1]["selection_top1"],
    }
    assert {key: card[key] for key in expected} == expected, f"card {card}, should hold {expected}"
    assert card["versions"]["torch"] == torch.__version__, f"{card['versions']}, should name torch {torch.__version__}"
    assert len(lines) == 4, f"{len(lines)} lines, should be one for each epoch and one for the test"


def test_train_reference_resumes(tmp_path):
    with pytest.raises(StoppedError):
        train_reference("tiny", "invented", CONFIG, out_dir=tmp_path, report=stop_after(2))
    lines = []
    card = train_reference("tiny", "invented", CONFIG, out_dir=tmp_path, resume=True, report=lines.append)
    whole = train_reference("tiny", "invented", CONFIG, out_dir=tmp_path / "whole")
    assert card["sha256"] == whole["sha256"], f"digest {card['sha256']}, should be {whole['sha256']}"
    assert lines[0].startswith("epoch 3/3"), f"{lines[0]!r}, should go on with epoch 3"


def check_starts_from(train_from, folder) -> None:
    first = train_reference("tiny", "invented", CONFIG, out_dir=folder, command="first")
    second = train_from(folder / "tiny-invented.safetensors", folder / "second")
    start = load_checkpoint(folder / "tiny-invented.safetensors")
    train(start, dataset(), CONFIG)
    found = load_checkpoint(folder / "second" / "tiny-invented.safetensors").state_dict()
    for name, values in start.state_dict().items():
        assert torch.equal(found[name], values), f"{name} should be trained from the first checkpoint's"
    expected = {"sha256": first["sha256"], "command": "first"}
    assert second.get("init") == expected, f"card {second.get('init')}, should name where it began, {expected}"


def test_a_card_names_every_start(tmp_path):
    train_reference("tiny", "invented", CONFIG, out_dir=tmp_path / "0", command="first")
    for number in (1, 2):
        init = tmp_path / str(number - 1) / "tiny-invented.safetensors"
        card = train_reference("tiny", "invented", CONFIG, init=init, out_dir=tmp_path / str(number), command="more")
    assert [card["init"]["command"], card["init"]["init"]["command"]] == ["more", "first"], f"card {card['init']}"


def test_a_training_starts_from_a_checkpoint(tmp_path):
    check_starts_from(lambda init, out: train_reference("tiny", "invented", CONFIG, init=init, out_dir=out), tmp_path)


def test_check_starts_from_rejects_mutant_random_weights(tmp_path):
    with pytest.raises(AssertionError, match="should be trained from"):
        check_starts_from(lambda init, out: train_reference("tiny", "invented", CONFIG, out_dir=out), tmp_path)


def test_a_training_does_not_start_from_another_model(precious):
    options = {"options": {"width": 3}, "init": precious / "tiny-invented.safetensors", "out_dir": precious / "x"}
    with pytest.raises(CheckpointError, match=r"with options .*'width': 3") as raised:
        train_reference("tiny", "invented", CONFIG, **options, report=never)
    assert "\n" not in str(raised.value)


@pytest.fixture
def precious(tmp_path):
    """A folder that holds a checkpoint and its card."""
    train_reference("tiny", "invented", CONFIG, out_dir=tmp_path)
    return tmp_path


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def never(line):
    raise AssertionError(f"{line}: trained, should refuse before")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("gone", ["json", "safetensors", None])
def test_a_checkpoint_is_not_overwritten(precious, gone, resume):
    if gone:
        (precious / f"tiny-invented.{gone}").unlink()
    before = contents(precious)
    with pytest.raises(CheckpointError, match=r"--force \[.*tiny-invented"):
        train_reference("tiny", "invented", CONFIG, out_dir=precious, resume=resume, report=never)
    assert contents(precious) == before, f"{sorted(contents(precious))}, should be as before"


def test_force_overwrites_a_checkpoint(precious):
    card = train_reference("tiny", "invented", dataclasses.replace(CONFIG, seed=1), out_dir=precious, force=True)
    found = read_card(precious / "tiny-invented.safetensors")["seed"]
    assert found == card["seed"] == 1, f"seed {found}, should be that of the second training"


def test_the_state_of_an_interrupted_training_is_not_overwritten(tmp_path):
    with pytest.raises(StoppedError):
        train_reference("tiny", "invented", CONFIG, out_dir=tmp_path, report=stop_after(2))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="--resume to go on with it, or --force to start anew"):
        train_reference("tiny", "invented", CONFIG, out_dir=tmp_path, report=never)
    assert contents(tmp_path) == before, f"{sorted(contents(tmp_path))}, should be as before"
    lines = []
    train_reference("tiny", "invented", CONFIG, out_dir=tmp_path, force=True, report=lines.append)
    assert lines[0].startswith("epoch 1/3"), f"{lines[0]!r}, should start anew"


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(CheckpointError, match=r"should be a folder for the checkpoint \[.*file"):
            train_reference("tiny", "invented", CONFIG, out_dir=folder, report=never)
    assert (tmp_path / "file").read_text() == "precious", "the file was overwritten"


def test_an_option_that_the_model_does_not_take_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"tiny: .*unexpected keyword argument 'activation'.*should be") as caught:
        train_reference("tiny", "invented", CONFIG, options={"activation": "relu"}, out_dir=tmp_path, report=never)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"


def test_a_training_that_diverges_writes_no_checkpoint(tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e30, warmup=0.0)
    with pytest.raises(ModelError, match="should be finite"):
        train_reference("tiny", "invented", config, out_dir=tmp_path)
    assert not list(tmp_path.iterdir()), f"{list(tmp_path.iterdir())}, should be nothing"
