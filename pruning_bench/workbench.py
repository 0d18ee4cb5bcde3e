"""What the cases of one run share, each made once: data, dense models, compressed models, sessions, logits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning_bench import recipe as grammar
from pruning_bench.build_cache import BuildCache, Order, usual_cache
from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Dataset, load_dataset
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed, Progress, check_seed, compress
from pruning_bench.environment import cores
from pruning_bench.errors import UnavailableError
from pruning_bench.models.checkpoints import SHIPPED, checkpoint_path, load_checkpoint, read_card
from pruning_bench.quantization import lower
from pruning_bench.registry import MODELS, RUNTIMES
from pruning_bench.runtimes.contract import Session, torch_threads

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
QUALITY_BATCH = 32  # activations that stay in cache: nearly twice as fast as 256 on the small models
T = TypeVar("T")


@dataclass
class Workbench:
    """Builds what cases need, each thing once.

    Args:
        folder: where the full data lies; None looks in the usual places.
        full: train and calibrate on the full training split instead of the shipped part.
        checkpoints: where the trained dense models lie; the shipped ones otherwise.
        progress: told of every build.
        cache: where compressed models are kept between runs; None makes all of them anew.
    """

    folder: Path | None = None
    full: bool = False
    checkpoints: Path = SHIPPED
    progress: Progress | None = None
    cache: BuildCache | None = field(default_factory=usual_cache)
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        discover()

    def dataset(self, name: str) -> Dataset:
        """The data set, loaded once."""
        return self._once(("dataset", name), lambda: load_dataset(name, self.folder, full=self.full))

    def dense(self, case: Case) -> nn.Module:
        """The trained dense model of a case."""
        return self._once(("dense", case.model, case.dataset), lambda: load_checkpoint(self.path(case)))

    def card(self, case: Case) -> dict[str, Any]:
        """The card of the checkpoint that the dense model was read from."""
        return self._once(("card", case.model, case.dataset), lambda: read_card(self.path(case)))

    def path(self, case: Case) -> Path:
        """Where the dense model's checkpoint lies."""
        return checkpoint_path(case.model, case.dataset, self.checkpoints)

    def example_inputs(self, case: Case) -> tuple[Tensor, ...]:
        """One training example as positional arguments of the forward."""
        return (self.dataset(case.dataset).train.inputs(slice(0, 1)),)

    def compressed(self, case: Case) -> Compressed:
        """The model of a case, compressed once per (model, data set, recipe, seed)."""
        key = ("compressed", case.model, case.dataset, case.recipe, case.seed)
        return self._once(key, lambda: self._compress(case))

    def session(self, case: Case) -> Session:
        """A session of the case's runtime; raises `UnavailableError` when the runtime cannot run here."""
        key = ("session", case.model, case.dataset, case.recipe, case.seed, case.runtime, case.device, case.threads)
        return self._once(key, lambda: self._build(case))

    def logits(self, case: Case) -> Tensor:
        """float32 [N, classes]: what the session that is timed gives on the test split."""
        key = ("logits", case.model, case.dataset, case.recipe, case.seed, case.runtime, case.device)

        def made() -> Tensor:
            session = self.session(case)
            return self._run(session.run, case, case.threads, cores() // case.threads if session.concurrent else 1)

        return self._once(key, made)

    def simulated_logits(self, case: Case) -> Tensor:
        """float32 [N, classes]: what the case's runtime should give by its listed rules, computed in eager."""
        rules = getattr(RUNTIMES[case.runtime], "rules", lower.INTEGER)
        made = self.compressed(case)
        if made.quant_plan is None or rules == lower.INTEGER:  # then it is what eager runs
            return self.logits(replace(case, runtime="eager", device="cpu"))
        key = ("simulated", case.model, case.dataset, case.recipe, case.seed, rules)
        plan = made.quant_plan

        def simulated() -> Tensor:
            model = lower.simulate(plan, made.float_model, made.example_inputs, rules)
            return self._run(torch.inference_mode()(model), case, 1, cores())

        return self._once(key, simulated)

    def float_logits(self, case: Case) -> Tensor:
        """float32 [N, classes]: what the model just before quantization gives on the test split."""
        if len(list(grammar.parse(case.recipe).steps())) == 1:  # quantized and nothing else
            return self.logits(case.dense)

        def made() -> Tensor:
            unquantized = replace(self.compressed(case), quant_plan=None)
            session = RUNTIMES["eager"].build(unquantized, self.example_inputs(case))
            return self._run(session.run, case, 1, cores() if session.concurrent else 1)

        return self._once(("float", case.model, case.dataset, case.recipe, case.seed), made)

    def put(self, case: Case, compressed: Compressed) -> None:
        """Takes a compressed model that was read from a file instead of making it."""
        self._made["compressed", case.model, case.dataset, case.recipe, case.seed] = compressed

    def _compress(self, case: Case) -> Compressed:
        dataset, threads = self.dataset(case.dataset), cores()

        def made() -> Compressed:
            with torch_threads(threads):
                return compress_with(self.dense(case), case.recipe, dataset, seed=case.seed, progress=self.progress)

        if self.cache is None:
            return made()
        order = Order(
            name=f"{case.model}-{case.dataset}",
            recipe=grammar.parse(case.recipe),
            dense=self.dense(case),
            builder=MODELS[case.model].build,
            card=self.card(case),
            dataset=dataset,
            full=self.full,
            calibration=(CALIBRATION_IMAGES, CALIBRATION_BATCH),
            seed=case.seed,
            threads=threads,
        )
        return self.cache.serve(order, made)

    def _build(self, case: Case) -> Session:
        runtime = RUNTIMES[case.runtime]
        if reason := runtime.available(case.device):
            raise UnavailableError(case.runtime, reason, "available", str(case))
        session: Session = runtime.build(
            self.compressed(case), self.example_inputs(case), threads=case.threads, device=case.device
        )
        return session

    def _run(self, run: Callable[..., Tensor], case: Case, threads: int, workers: int) -> Tensor:
        """The outputs on the test split, several batches at a time: faster than several threads on one batch."""
        test = self.dataset(case.dataset).test

        def outputs(start: int) -> Tensor:
            return run(test.inputs(slice(start, start + QUALITY_BATCH))).float().cpu()

        starts = range(0, len(test), QUALITY_BATCH)
        with (
            torch_threads(threads),
            ThreadPoolExecutor(max(workers, 1), initializer=torch.set_num_threads, initargs=(threads,)) as pool,
        ):
            return torch.cat(list(pool.map(outputs, starts)))

    def _once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


def compress_with(
    dense: nn.Module, recipe: str, dataset: Dataset, *, seed: int = 0, progress: Progress | None = None
) -> Compressed:
    """Compresses with a data set: an example, calibration batches and training examples, all of its train split."""
    check_seed(seed)
    drawn = dataset.train.sample(CALIBRATION_IMAGES, torch.Generator().manual_seed(seed))
    return compress(
        dense,
        recipe,
        example_inputs=(dataset.train.inputs(slice(0, 1)),),
        calibration=[(inputs,) for inputs, _ in drawn.batches(CALIBRATION_BATCH)],
        train=dataset.train,
        seed=seed,
        progress=progress,
    )
