"""What must hold for every pruning method: checks that assert, and the list that a method's tags choose.

A check takes what it judges and returns nothing; a message holds the values and can be read without the source.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.conformance.plan_checks import (
    OPTIMIZERS,
    Plan,
    apply_plan,
    check_covers_only_prunable,
    check_deepcopy,
    check_pruned_stay_zero,
    check_state_dict_loads,
    check_twin,
    check_twins,
    kept_entries,
    outputs,
    require_same,
)
from pruning_bench.conformance.strategies import GraphSpec, Subject, graph_specs, normed_subject, small_subjects, tied
from pruning_bench.conformance.traces import differences, plan_without_trace
from pruning_bench.errors import LevelError, ModelError, PluginError
from pruning_bench.metrics.cost import count_cost
from pruning_bench.pruning.contract import ChannelPlan, MaskPlan, PruningMethod
from pruning_bench.pruning.couplings import find_couplings
from pruning_bench.pruning.masks import current_masks, prunable, pruned_count

Check: TypeAlias = Callable[[PruningMethod], None]
HIGH = {"element": 0.9, "channel": 0.7}  # of two channels 0.7 leaves one
SPARED = 2  # random graphs that a method may refuse, however few it is tried on
HIGHEST = {"element": 0.999, "channel": HIGH["channel"]}


def check_counts(method: PruningMethod, subject: Subject, level: float) -> None:
    """Exactly `pruned_count` go: of each tensor or coupling, or of all together; a channel of each coupling stays.

    A method with a `scope` says which of the two: "layer" or "global"; one with a `block` above 1 is counted in blocks.
    Of one that needs batch norms, couplings do not count that its plan names as untouched and leaves whole.
    """
    plan = method.plan(subject.model, level, subject.context())
    counts = _removed(plan, subject, getattr(method, "block", 1))
    if method.tags.needs_batch_norm:
        counts = {name: count for name, count in counts.items() if count[0] or name not in plan.untouched}
        assert counts, f"{method.name}:{level} on {subject.name} leaves every coupling untouched: {plan.untouched}"
    _require_counts(method, level, subject.name, counts, spare=0 if isinstance(plan, MaskPlan) else 1)
    if isinstance(plan, ChannelPlan):
        said = {name: plan.removed.get(name, (0, size))[0] for name, (_, size) in counts.items()}
        found = {name: removed for name, (removed, _) in counts.items()}
        assert said == found, f"{method.name}:{level} on {subject.name} says it removes {said}, but removes {found}"


def check_compounds(method: PruningMethod, subject: Subject, level: float) -> None:
    """After masks that are there already, the level is the share removed of what they left, and nothing comes back."""
    first = method.plan(subject.model, level, subject.context())
    assert isinstance(first, MaskPlan), f"{method.name}:{level} gives a {type(first).__name__}, should be a MaskPlan"
    context = replace(subject.context(), earlier=dict(first.masks))
    second = method.plan(apply_plan(subject.model, first), level, context)
    block = getattr(method, "block", 1)
    before = _removed(first, subject, block)
    after = _removed(MaskPlan(current_masks([first, second])), subject, block)
    counts = {name: (after[name][0] - gone, size - gone) for name, (gone, size) in before.items()}
    _require_counts(method, level, f"what {method.name}:{level} left of {subject.name}", counts)


def _require_counts(
    method: PruningMethod, level: float, where: str, counts: Mapping[str, tuple[int, int]], spare: int = 0
) -> None:
    """`pruned_count` go of each (removed, there were), or of all together, but for `spare` that always stay of each."""
    each = {name: min(pruned_count(size, level), size - spare) for name, (_, size) in counts.items()}
    sizes = sum(size for _, size in counts.values())
    together = min(pruned_count(sizes, level), sizes - spare * len(counts))
    found = {name: removed for name, (removed, _) in counts.items()}
    exact = {"layer": found == each, "global": sum(found.values()) == together}
    assert exact.get(getattr(method, "scope", ""), any(exact.values())), (
        f"{method.name}:{level} on {where} removes {found}, sum {sum(found.values())}; "
        f"should be {each}, or {together} in all of {sizes}"
    )


def _removed(plan: Plan, subject: Subject, block: int = 1) -> dict[str, tuple[int, int]]:
    """Tensor or coupling -> (removed, there were), counted from the masks and indices themselves.

    Args:
        block: of masks, blocks of so many inputs are counted; each has to be whole or gone.
    """
    if isinstance(plan, MaskPlan) and block > 1:
        return {name: _removed_blocks(name, mask, block) for name, mask in plan.masks.items()}
    if isinstance(plan, MaskPlan):
        return {name: (int((~mask).sum()), mask.numel()) for name, mask in plan.masks.items()}
    found = find_couplings(subject.model, subject.example_inputs)
    counts = {}
    for name, units in found.groups.items():
        tensor, dim = found.producers[name][0]
        made = torch.from_numpy(found.units[tensor, dim])
        index = plan.kept.get(tensor, {}).get(dim)
        left = set(made.tolist() if index is None else made[index].tolist())
        counts[name] = (sum(int(unit) not in left for unit in units), len(units))
    return counts


def _removed_blocks(name: str, mask: Tensor, block: int) -> tuple[int, int]:
    parts = mask.movedim(1, -1).split(block, -1)  # type: ignore[no-untyped-call]
    torn = sum(int((part.any(-1) & ~part.all(-1)).sum()) for part in parts)
    assert not torn, f"{torn} blocks of {block} inputs of {name} are torn, each should stay or go as a whole"
    return sum(int((~part.any(-1)).sum()) for part in parts), sum(part[..., 0].numel() for part in parts)


def check_budget(method: PruningMethod, subject: Subject, level: float) -> None:
    """At most 1 - level of the method's `budget` is left, counted on the shrunk model; `round_to` divides what stays.

    A coupling that keeps all of its channels need not be a multiple.
    """
    plan = method.plan(subject.model, level, subject.context())
    budget, multiple = getattr(method, "budget", "channels"), getattr(method, "round_to", 1)
    counts = _removed(plan, subject)
    left = {name: size - removed for name, (removed, size) in counts.items()}
    odd = {name: kept for name, kept in left.items() if kept % multiple and kept != counts[name][1]}
    assert not odd, f"{method.name}:{level} on {subject.name} keeps {odd}, should be multiples of {multiple}"
    if budget in ("macs", "params"):
        made, dense = (count_cost(m, subject.example_inputs) for m in (apply_plan(subject.model, plan), subject.model))
        found, whole = getattr(made, budget), getattr(dense, budget)
        assert found <= (1 - level) * whole, (
            f"{method.name}:{level} on {subject.name} leaves {found} of {whole} {budget}, {found / whole:.3f}"
        )


def check_nested(method: PruningMethod, subject: Subject, levels: Sequence[float] = ()) -> None:
    """What a low level removes, every higher level removes too.

    Args:
        levels: none stands for some that small models can meet.
    """
    levels = levels or (0.2, 0.5, HIGH[method.tags.structure] if _plain(method) else 0.6)
    plans = [(level, method.plan(subject.model, level, subject.context())) for level in sorted(levels)]
    for (low, first), (high, second) in itertools.pairwise(plans):
        before, after = kept_entries(first, subject.model), kept_entries(second, subject.model)
        for name in before:
            back = int((after[name] & ~before[name]).sum())
            assert not back, f"{method.name}:{high} keeps {back} entries of {name} that {method.name}:{low} removes"


def check_deterministic(method: PruningMethod, subject: Subject, level: float) -> None:
    """Equal seeds give equal plans whatever torch's global state; another seed another one exactly if `tags.random`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = method.plan(subject.model, level, subject.context(0))
        torch.manual_seed(2)
        second = method.plan(subject.model, level, subject.context(0))
    found = differences(first, second)
    assert not found, f"{method.name}:{level} gives two plans for one seed, that differ in {', '.join(found)}"
    if method.tags.needs_calibration or method.tags.needs_train:  # data that follow from the seed as well
        return
    differs = bool(differences(first, method.plan(subject.model, level, subject.context(1))))
    assert differs == method.tags.random, (
        f"{method.name}: random={method.tags.random}, other seed, other plan: {differs}"
    )


def check_leaves_no_trace(method: PruningMethod, subject: Subject, level: float) -> None:
    """`plan` leaves its inputs, the global generators and torch's settings as they were; see `plan_without_trace`."""
    plan_without_trace(method, copy.deepcopy(subject.model).train(), level, subject.context())


def check_level_zero_is_identity(method: PruningMethod, subject: Subject) -> None:
    """Level 0 removes nothing: the model computes bit by bit the same."""
    plan = method.plan(subject.model, 0.0, subject.context())
    gone = {name: int((~kept).sum()) for name, kept in kept_entries(plan, subject.model).items() if not kept.all()}
    assert not gone, f"{method.name}:0 removes {gone}"
    require_same(outputs(apply_plan(subject.model, plan), subject), outputs(subject.model, subject), f"{method.name}:0")


def check_bad_levels(method: PruningMethod, subject: Subject) -> None:
    """Sparsities outside [0, 1) raise `LevelError`."""
    for level in (1.0, 1.5, -0.1, float("nan")):
        _raises(LevelError, "", method, subject.model, level, subject)


def check_emptying_levels(method: PruningMethod, subject: Subject) -> None:
    """A level that would leave no channel of any coupling raises `LevelError`."""
    _raises(LevelError, "", method, subject.model, 0.999999, subject)


def check_nan_weights(method: PruningMethod, subject: Subject) -> None:
    """A weight of NaN or infinity raises `ModelError` that names its tensor."""
    name = next(iter(prunable(subject.model, subject.example_inputs)))
    for bad in (float("nan"), float("inf")):
        model = copy.deepcopy(subject.model)
        model.get_parameter(name).data.view(-1)[0] = bad
        _raises(ModelError, name, method, model, 0.5, subject)


def check_nothing_prunable(method: PruningMethod, subject: Subject) -> None:
    """A model without prunable layers raises `ModelError`."""
    _raises(ModelError, "", method, nn.Sequential(nn.Flatten(), nn.ReLU()), 0.5, subject)


def check_random_graphs(method: PruningMethod, graphs: int) -> None:
    """On random networks the plan covers what it may, in the right counts, and channels go as their twin says.

    Args:
        graphs: how many; the same ones each time. Of a method of channels at most half of them, or `SPARED` of few, may
            be refused, because the level cannot be met or nothing can go.
    """
    scaled, channels = method.tags.needs_batch_norm, method.tags.structure == "channel"
    refused: list[str] = []
    most = max(graphs // 2, SPARED)
    quiet = settings(
        max_examples=graphs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # making a failing graph smaller takes minutes
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )

    @quiet
    @given(graph_specs(most_blocks=3), st.sampled_from((0.3, 0.5, 0.6 if channels else 0.8)))
    def holds(spec: GraphSpec, level: float) -> None:
        subject = (replace(spec, norm=True) if scaled else spec).build()
        try:
            plan = method.plan(subject.model, level, subject.context())
        except (LevelError, ModelError) as error:
            if not channels:
                raise
            refused.append(f"{error} [{method.name}:{level} on {subject.name}]")
            assert len(refused) <= most, f"{method.name} refuses more than {most} random graphs: {refused[0]}"
            reject()
        check_covers_only_prunable(plan, subject)
        (check_counts if _plain(method) else check_budget)(method, subject, level)
        if isinstance(plan, ChannelPlan):
            try:
                check_twin(subject.model.double(), plan, tuple(value.double() for value in subject.example_inputs))
            except AssertionError as failure:
                raise AssertionError(f"{method.name}:{level} on {subject.name}: {failure}") from failure

    holds()


def _plain(method: PruningMethod) -> bool:
    """Whether its level is a share of the channels or weights themselves."""
    return getattr(method, "budget", "channels") == "channels" and getattr(method, "round_to", 1) == 1


def _raises(
    error: type[Exception], part: str, method: PruningMethod, model: nn.Module, level: float, subject: Subject
) -> None:
    try:
        method.plan(model, level, subject.context())
        found = "nothing"
    except error as raised:
        found = repr(raised)
    right = error.__name__ in found and part in found
    assert right, f"{method.name}:{level} raises {found}, should raise {error.__name__} naming {part!r}"


def checks_for_pruning(
    method: PruningMethod, subjects: Sequence[Subject] | None = None, graphs: int = 0
) -> list[tuple[str, Check]]:
    """The checks that the method's tags ask for, by name; each is called with the method.

    Args:
        subjects: models to check on; None takes `small_subjects()`, those with batch norms where the tags ask for them.
        graphs: so many random networks besides.
    Raises:
        PluginError: a measured budget, whose plans no check can foresee.
    """
    if getattr(method, "budget", "") == "latency":
        found, expected = (
            "budget=latency, measured anew for every plan",
            "a budget that is counted: channels, macs, params",
        )
        raise PluginError(method.name, found, expected)
    models = list(subjects) if subjects is not None else small_subjects()[1 if method.tags.needs_batch_norm else 0 :]
    normed = models[-1:] if subjects is not None else [normed_subject()]
    plain = _plain(method)
    checks: list[tuple[str, Check]] = [
        ("counts", _on([models[-1], tied(models[0])], check_counts, (0.29, HIGHEST[method.tags.structure])))
        if plain
        else ("budget", _on([models[-1], tied(models[0])], check_budget, (0.29, 0.5))),
        ("covers_only_prunable", _on_plans(models, check_covers_only_prunable)),
        ("deterministic", _on(models[:1], check_deterministic, (0.5,))),
        ("leaves_no_trace", _on(normed, check_leaves_no_trace, (0.5,))),
        ("level_zero_is_identity", _on(models[-1:], check_level_zero_is_identity)),
        ("bad_levels", _on(models[:1], check_bad_levels)),
        ("nan_weights", _on(models[:1], check_nan_weights)),
        ("nothing_prunable", _on(models[:1], check_nothing_prunable)),
        ("state_dict_loads", _on_plans(models[-1:], check_state_dict_loads)),
        ("deepcopy", _on_plans(models[-1:], check_deepcopy)),
    ]
    if method.tags.nested:
        checks.append(("nested", _on([tied(models[0])], check_nested)))
    if method.tags.structure == "element":
        checks.append(("compounds", _on(models[:1], check_compounds, (0.5,))))
        checks += [
            (f"pruned_stay_zero_{name}", _on_plans(models[:1], partial(check_pruned_stay_zero, optimizer=name)))
            for name in OPTIMIZERS
        ]
    else:
        checks.append(("twin", _on_plans(models, check_twins)))
        if plain:
            checks.append(("emptying_levels", _on(models[:1], check_emptying_levels)))
    if graphs:
        checks.append(("random_graphs", partial(check_random_graphs, graphs=graphs)))
    return checks


def _on(subjects: Sequence[Subject], check: Callable[..., None], levels: Sequence[float] | None = None) -> Check:
    def run(method: PruningMethod) -> None:
        for subject in subjects:
            for level in [()] if levels is None else [(level,) for level in levels]:
                check(method, subject, *level)

    return run


def _on_plans(subjects: Sequence[Subject], check: Callable[..., None], level: float = 0.5) -> Check:
    def run(method: PruningMethod) -> None:
        for subject in subjects:
            check(method.plan(subject.model, level, subject.context()), subject)

    return run
