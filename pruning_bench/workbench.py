"""What the cases of one run share, each made once: data, dense models, compressed models, sessions, logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning_bench import recipe as grammar
from pruning_bench.build_cache import BuildCache, Order, key_of, usual_cache
from pruning_bench.build_entries import digest_tensors
from pruning_bench.cases import Case
from pruning_bench.datasets.contract import Dataset, load_dataset
from pruning_bench.discover import discover
from pruning_bench.engine import Compressed, Progress, check_seed, check_weights, last_stages
from pruning_bench.environment import cores
from pruning_bench.errors import DataError, ModelError, PlanError, PruningBenchError, UnavailableError, describe
from pruning_bench.fingerprints import fingerprint
from pruning_bench.metrics.contract import Evaluation
from pruning_bench.models.checkpoints import SHIPPED, checkpoint_path, load_checkpoint, read_card
from pruning_bench.models.contract import ReferenceModel, build_model, first_tensor, fresh, place_of
from pruning_bench.quantization.lower import INTEGER
from pruning_bench.quantization.simulation import relevant, simulate
from pruning_bench.registry import DATASETS, MODELS, RUNTIMES
from pruning_bench.runtimes.contract import Session, torch_threads
from pruning_bench.runtimes.onnx_export import serve_exports
from pruning_bench.tasks import check_outputs, task_of

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
QUALITY_BATCH = 32  # activations that stay in cache: nearly twice as fast as 256 on the small models
OWN_EXAMPLES = 8  # of a user's own, on which model and score are tried before anything is measured
T = TypeVar("T")


@dataclass
class Workbench:
    """Builds what cases need, each thing once.

    Args:
        folder: where the full data lies; None looks in the usual places.
        full: train and calibrate on the full training split instead of the shipped part.
        checkpoints: where the trained dense models lie; the shipped ones otherwise.
        progress: told of every build.
        rivals: (runtime, recipe) of what may be the strongest dense model; see `cases.rivals_of`, also for the default.
        cache: where compressed models are kept between runs; None makes all of them anew.
    """

    folder: Path | None = None
    full: bool = False
    checkpoints: Path = SHIPPED
    progress: Progress | None = None
    cache: BuildCache | None = field(default_factory=usual_cache)
    rivals: tuple[tuple[str, str], ...] = ()
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        discover()

    def dataset(self, name: str) -> Dataset:
        """The data set, loaded once."""
        return self._once(("dataset", name), lambda: load_dataset(name, self.folder, full=self.full))

    def dense(self, case: Case) -> nn.Module:
        """The trained dense model of a case."""
        return self._once(("dense", case.model, case.dataset), lambda: self._dense(case))

    def card(self, case: Case) -> dict[str, Any]:
        """The card of the checkpoint that the dense model was read from; of a user's own model one that is made up."""
        return self._once(("card", case.model, case.dataset), lambda: self._card(case))

    def path(self, case: Case) -> Path:
        """Where the dense model's checkpoint lies."""
        return checkpoint_path(case.model, case.dataset, self.checkpoints)

    def example_inputs(self, case: Case) -> tuple[Tensor, ...]:
        """One training example as positional arguments of the forward; a copy."""
        return fresh(self.dataset(case.dataset).train.arguments(slice(0, 1)))

    def compressed(self, case: Case) -> Compressed:
        """The model of a case, compressed once per (model, data set, recipe, seed)."""
        key = ("compressed", case.model, case.dataset, case.recipe, case.seed)
        return self._once(key, lambda: self._compress(case))

    def session(self, case: Case) -> Session:
        """A session of the case's runtime; raises `UnavailableError` when the runtime cannot run here."""
        key = ("session", case.model, case.dataset, case.recipe, case.seed, case.runtime, case.device, case.threads)
        return self._once(key, lambda: self._build(case))

    def logits(self, case: Case, count: int | None = None) -> Tensor:
        """float32 [N, ...]: what the session that is timed gives on the test examples; [N, classes] of a classifier.

        Args:
            count: of how many test examples, the first ones; None: of all.
        """
        size = self._batch(case)
        key = ("logits", case.model, case.dataset, case.recipe, case.seed, case.runtime, case.device, size)

        def made() -> Tensor:
            if together := self._together(case):
                return self._run(together, case, case.threads, cores() // case.threads, count=count)
            session = self.session(case)
            workers = cores() // case.threads if session.concurrent else 1
            return self._run(session.run, case, case.threads, workers, size, count)

        if count is None:
            return self._once(key, made)
        return self._once(key, made)[:count] if key in self._made else self._once((*key, count), made)

    def simulated_logits(self, case: Case, count: int | None = None) -> Tensor:
        """float32 [count, ...]: what the case's runtime should give by its listed rules, computed in eager.

        Args:
            count: of how many test examples, the first ones; None: of all.
        """
        made, size = self.compressed(case), self._batch(case)
        plan = made.quant_plan
        rules = getattr(RUNTIMES[case.runtime], "rules", INTEGER)
        rules = rules if plan is None else relevant(rules, plan)
        if plan is None or rules == INTEGER:  # then it is what eager runs
            return self.logits(replace(case, runtime="eager", device="cpu"), count)
        key = ("simulated", case.model, case.dataset, case.recipe, case.seed, rules, size, count)

        def simulated() -> Tensor:
            model = simulate(plan, made.float_model, made.example_inputs, rules)
            return self._run(torch.inference_mode()(model), case, 1, cores(), size, count)

        return self._once(key, simulated)

    def float_logits(self, case: Case, count: int | None = None) -> Tensor:
        """float32 [count, ...]: what the model just before quantization gives on the first test examples, or on all."""
        if len(list(grammar.parse(case.recipe).steps())) == 1:  # quantized and nothing else
            return self.logits(case.dense, count)

        def made() -> Tensor:
            unquantized = replace(self.compressed(case), quant_plan=None)
            session = RUNTIMES["eager"].build(unquantized, self.example_inputs(case))
            return self._run(session.run, case, 1, cores() if session.concurrent else 1, count=count)

        return self._once(("float", case.model, case.dataset, case.recipe, case.seed, count), made)

    def put(self, case: Case, compressed: Compressed) -> None:
        """Takes a compressed model that was read from a file instead of making it."""
        self._made["compressed", case.model, case.dataset, case.recipe, case.seed] = compressed

    def _dense(self, case: Case) -> nn.Module:
        definition: ReferenceModel = MODELS[case.model]
        if definition.ready and not case.labelled:
            return definition.ready()
        if not definition.own:
            return load_checkpoint(self.path(case))
        model = build_model(case.model)
        examples = self.dataset(case.dataset).test
        output = run_own(definition, model, examples.arguments(slice(0, OWN_EXAMPLES)))
        if not isinstance(output, Tensor):
            model = build_model(case.model, first_output=True)
        first = first_tensor(output)
        if first is None:
            found = f"it returns {type(output).__name__}"
            raise ModelError(case.model, found, "a tensor, or one inside a tuple, mapping or dataclass")
        check_outputs(first, min(OWN_EXAMPLES, len(examples)), case.model)
        self._made["first_output", case.model, case.dataset] = not isinstance(output, Tensor)
        return model

    def _card(self, case: Case) -> dict[str, Any]:
        definition: ReferenceModel = MODELS[case.model]
        if definition.ready and not case.labelled:
            sha256 = digest_tensors(self.dense(case).state_dict())
            options = dict(definition.options)
            return {"model": case.model, "dataset": case.dataset, "options": options, "sha256": sha256}
        if not definition.own:
            return read_card(self.path(case))
        dense = self.dense(case)
        options = {"first_output": True} if self._made["first_output", case.model, case.dataset] else {}
        return {"model": case.model, "dataset": case.dataset, "options": options, "sha256": fingerprint(dense)}

    def check(self, case: Case) -> None:
        """Refuses, before anything is measured, what the dense model, its data or their score cannot give.

        Raises:
            PruningBenchError: missing or damaged; weights that are not finite; a model that does not run on its data;
                test inputs that are not finite where the outputs then are not either; a class that the model does not
                tell; a score that is no score.
        """
        test, model = self.dataset(case.dataset).test, self.dense(case)
        check_weights(model, f"model {case.model}")
        if not MODELS[case.model].own:
            return
        who, definition = f"{case.dataset}: test", DATASETS[case.dataset]
        where, task = place_of(definition.load), task_of(definition)
        self._check_inputs(model, case, who, where)
        few = slice(0, OWN_EXAMPLES)
        for rows in (slice(0, 1), few):  # one is what is timed, and may be what is left for the last batch
            outputs = self._outputs(model, case, rows)
        task.check_targets(test.targets, outputs, who, where)
        targets = None if test.targets is None else test.targets[few]
        seen = Evaluation(outputs, targets, outputs, model, self.example_inputs(case))
        task.measure(lambda *_, **__: None, seen)  # type: ignore[arg-type]
        self.card(case)

    def _check_inputs(self, model: nn.Module, case: Case, who: str, where: str) -> None:
        """Raises `DataError` for test inputs that spoil outputs; those of a mask may be infinite and spoil none."""
        for number, value in enumerate(self.dataset(case.dataset).test.arguments()):
            wrong = ~value.reshape(len(value), -1).isfinite().all(1)
            for row in wrong.nonzero()[:OWN_EXAMPLES].flatten().tolist():
                if not self._outputs(model, case, slice(row, row + 1)).isfinite().all():
                    found = f"input {number} of example {row} NaN or infinite, and so its output"
                    raise DataError(who, found, "finite", where)

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
        cache, made_from = self.cache, key_of(order)
        served = cache.serve(order, made)
        serve_exports(served, lambda kind, make: cache.serve_export(order, made_from, kind, make))
        return served

    def _build(self, case: Case) -> Session:
        runtime = RUNTIMES[case.runtime]
        if reason := runtime.available(case.device):
            raise UnavailableError(case.runtime, reason, "available", str(case))
        session: Session = runtime.build(
            self.compressed(case), self.example_inputs(case), threads=case.threads, device=case.device
        )
        return session

    def _together(self, case: Case) -> Callable[..., Tensor] | None:
        """Runs many examples as a simulation with dynamic ranges runs one at a time.

        None for every other case, and where the model's layers do not tell one example from another.
        """
        made = self.compressed(case)
        plan, simulated = made.quant_plan, getattr(RUNTIMES[case.runtime], "simulates_quantized", False)
        if not simulated or plan is None or not plan.dynamic or (case.batch, case.device) != (1, "cpu"):
            return None
        try:
            return torch.inference_mode()(simulate(plan, made.float_model, made.example_inputs, singly=True))
        except PlanError:
            return None

    def _batch(self, case: Case) -> int:
        """How many examples run at once: dynamic ranges are a whole batch's, so there as many as are timed."""
        plan = self.compressed(case).quant_plan
        return case.batch if plan is not None and plan.dynamic else QUALITY_BATCH

    def _run(
        self,
        run: Callable[..., Tensor],
        case: Case,
        threads: int,
        workers: int,
        size: int = QUALITY_BATCH,
        count: int | None = None,
    ) -> Tensor:
        """The outputs on the test split, several batches at a time: faster than several threads on one batch."""
        total = min(len(self.dataset(case.dataset).test), count or sys.maxsize)
        starts = range(0, total, size)
        with (
            torch_threads(threads),
            ThreadPoolExecutor(max(workers, 1), initializer=torch.set_num_threads, initargs=(threads,)) as pool,
        ):
            outputs = pool.map(lambda start: self._outputs(run, case, slice(start, min(start + size, total))), starts)
            return torch.cat(list(outputs))

    def _outputs(self, run: Callable[..., Tensor], case: Case, rows: slice) -> Tensor:
        """float32 [n, ...] on the CPU, of some test examples; what a user's own model gets wrong is a `ModelError`."""
        test = self.dataset(case.dataset).test
        inputs = test.arguments(rows)
        definition = MODELS[case.model] if case.model in MODELS else None  # noqa: SIM401  a registry; a file has none
        if definition is None or not definition.own:
            return run(*fresh(inputs)).float().cpu()
        return check_outputs(run_own(definition, run, inputs), len(inputs[0]), case.model).float().cpu()

    def _once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


def run_own(definition: ReferenceModel, model: Callable[..., object], inputs: tuple[Tensor, ...]) -> object:
    """What a user's model returns for some of its examples; raises `ModelError` where it does not run on them."""
    try:
        with torch.inference_mode():
            return model(*fresh(inputs))
    except PruningBenchError:
        raise
    except Exception as problem:
        kinds = ", ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in inputs)
        found = describe(problem)
        raise ModelError(
            definition.name, found, f"a model that runs on {kinds}", place_of(definition.build)
        ) from problem


def compress_with(
    dense: nn.Module, recipe: str, dataset: Dataset, *, seed: int = 0, progress: Progress | None = None
) -> Compressed:
    """Compresses with a data set: an example, calibration batches and training examples, all of its train split."""
    return stages_with(1, dense, recipe, dataset, seed=seed, progress=progress)[0]


def stages_with(
    count: int,
    dense: nn.Module,
    recipe: str,
    dataset: Dataset,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Compressed]:
    """The last stages of `compress_with`, which see `engine.last_stages`."""
    check_seed(seed)
    drawn = dataset.train.sample(CALIBRATION_IMAGES, torch.Generator().manual_seed(seed))
    return last_stages(
        count,
        dense,
        recipe,
        example_inputs=fresh(dataset.train.arguments(slice(0, 1))),
        calibration=[
            drawn.arguments(slice(start, start + CALIBRATION_BATCH))
            for start in range(0, len(drawn), CALIBRATION_BATCH)
        ],
        train=dataset.train,
        seed=seed,
        progress=progress,
    )
