"""The quantized model in eager: modules that compute what a runtime computes by its rules, down to single codes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pruning_bench.errors import PlanError
from pruning_bench.quantization.affine import affine_of
from pruning_bench.quantization.blocked import BlockedLinear
from pruning_bench.quantization.cast import cast
from pruning_bench.quantization.contract import Affine, Coding, Float8, QuantPlan
from pruning_bench.quantization.dynamic import DynamicLinear
from pruning_bench.quantization.float8 import FakeFloat8
from pruning_bench.quantization.integer import FakeQuantize, FloatLayer, IntegerAdd, IntegerLayer, IntegerMean, Rounding
from pruning_bench.quantization.lower import INTEGER, WHO, Rule, Site, lower
from pruning_bench.quantization.pooling import Pooling


def simulate(
    plan: QuantPlan,
    float_model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    rules: frozenset[Rule] = INTEGER,
    *,
    singly: bool = False,
) -> nn.Module:
    """The quantized model in eager: a plain module that computes what a runtime with these rules computes.

    Args:
        plan: never changed.
        float_model: the model just before quantization (its batch norm is folded here); never changed.
        example_inputs: positional arguments of its forward; any batch size runs afterwards.
        rules: what the runtime does; the empty set is the bare plan.
        singly: examples are quantized at run time as if each were run alone, however many run at once; for models that
            compute nothing across examples.
    Raises:
        PlanError: the plan names what the model does not have, or has other shapes; `singly` where examples
            cannot be told apart in a layer's input.
    """
    if plan.dtype is not None:
        return cast(float_model, plan.dtype)
    return lower(plan, float_model, example_inputs, Simulation(rules, singly))


def relevant(rules: frozenset[Rule], plan: QuantPlan) -> frozenset[Rule]:
    """The rules without those that change nothing of this plan: models with equal ones are simulated once."""
    return rules if plan.weights_only else rules - {Rule.BLOCKED_INPUTS}


@dataclass(frozen=True)
class Simulation:
    """Modules that compute."""

    rules: frozenset[Rule]
    singly: bool = False
    every_value = False

    @property
    def sums_in_layers(self) -> bool:
        """By the rule of that name."""
        return Rule.SUMS_IN_LAYERS in self.rules

    @property
    def epsilon_of_codes(self) -> bool:
        """By the rule of that name."""
        return Rule.EPSILON_OF_CODES in self.rules

    def layer(self, site: Site) -> tuple[nn.Module, bool]:
        """On codes when these are integers and the rules say so, else in float with a rounded weight."""
        assert site.weight is not None
        assert site.weight_coding is not None
        x, coding = site.inputs[0], site.weight_coding
        if site.dynamic:
            if self.singly and site.examples is None:
                raise PlanError(
                    WHO, "an input in which examples cannot be told apart", "one, to run them singly", site.name
                )
            examples = site.examples if self.singly else None
            return DynamicLinear(site.weight, affine_of(coding, site.name), site.bias, examples), False
        if site.block is not None and Rule.BLOCKED_INPUTS in self.rules:
            return BlockedLinear(site.weight, affine_of(coding, site.name), site.bias, site.block), False
        if not isinstance(x, Affine) or not isinstance(coding, Affine) or Rule.INTEGER_SUMS not in self.rules:
            return FloatLayer(site.function, site.weight, coding, site.bias, site.arguments), False
        common = (site.function, site.weight, coding, site.bias, site.arguments)
        y, whole_bias = self._fused(site), Rule.INTEGER_BIASES in self.rules
        rounding = Rounding.SHIFTED if Rule.SHIFTED in self.rules else self._rounding
        one = whole_bias and Rule.ONE_FACTOR in self.rules
        return IntegerLayer(*common, x, y, site.relu, None if one else rounding, whole_bias), y is not None

    def add(self, site: Site) -> tuple[nn.Module, bool] | None:
        """On codes when both sides and the sum are quantized."""
        (a, b), y = site.inputs, self._fused(site, Rule.INTEGER_ADDS)
        if not isinstance(a, Affine) or not isinstance(b, Affine) or y is None:
            return None
        return IntegerAdd(a, b, y, site.relu), True

    def pool(self, site: Site, dims: int) -> tuple[nn.Module, bool] | None:
        """On codes when input and output are quantized."""
        x, y = site.inputs[0], self._fused(site, Rule.INTEGER_ADDS)
        if not isinstance(x, Affine) or y is None or site.relu:
            return None
        return IntegerMean(x, y, dims), True

    def average(self, site: Site, pooling: Pooling) -> tuple[nn.Module, bool] | None:
        """The float operator as it is."""
        return None

    def value(self, coding: Coding, name: str) -> nn.Module:
        """A float value rounded to its grid."""
        return FakeFloat8(coding) if isinstance(coding, Float8) else FakeQuantize(coding, self._rounding)

    @property
    def _rounding(self) -> Rounding:
        """Of values in float."""
        if Rule.ENDS in self.rules:
            return Rounding.ENDS
        return Rounding.DIVISION if Rule.DIVIDE in self.rules else Rounding.RECIPROCAL

    def _fused(self, site: Site, rule: Rule = Rule.INTEGER_SUMS) -> Affine | None:
        """The affine of the output where the module at the site quantizes it too."""
        fuses = rule in self.rules and (not site.relu or Rule.RELU_IS_CLAMP in self.rules)
        return site.output if fuses and isinstance(site.output, Affine) else None
