"""The metrics that the suite takes itself; importing this module registers them."""

from __future__ import annotations

from pruning_bench.metrics.contract import Metric, register

SUITE = (
    Metric("top1", "1", "higher", "paired", 1, "share of test examples predicted right"),
    Metric("top5", "1", "higher", "shown", 1, "share of test examples with the label among the five highest logits"),
    Metric("loss", "1", "lower", "shown", 1, "mean negative log-likelihood (NLL) of the test labels, in nats"),
    Metric("calibration_error", "1", "lower", "shown", 1, "expected calibration error (ECE) of the test predictions"),
    Metric("agreement", "1", "higher", "shown", 1, "share of test predictions equal to the dense model's"),
    Metric("flips", "count", "lower", "shown", 1, "test predictions that differ from the dense model's"),
    Metric(
        "agreement_simulation",
        "1",
        "higher",
        "shown",
        1,
        "share of predictions equal to the simulation's, of the first 2,000 test examples",
    ),
    Metric("similarity", "1", "higher", "shown", 1, "mean cosine between the test outputs and the dense model's"),
    Metric(
        "similarity_simulation",
        "1",
        "higher",
        "shown",
        1,
        "mean cosine between the outputs and the simulation's, of the first 2,000 test examples",
    ),
    Metric("params", "count", "lower", "exact", 1, "parameters"),
    Metric("nonzeros", "count", "lower", "exact", 1, "parameters that are not zero"),
    Metric("bytes", "B", "lower", "exact", 1, "size of the saved file"),
    Metric("bytes_zipped", "B", "lower", "shown", 1, "size of the saved file after deflate"),
    Metric("macs", "MAC", "lower", "exact", 1, "multiply-accumulates of one example"),
    Metric("macs_effective", "MAC", "lower", "exact", 1, "multiply-accumulates of one example with a nonzero weight"),
    Metric("peak_memory", "B", "lower", "shown", 1, "growth of memory in use during one call"),
    Metric("latency", "s", "lower", "shown", 1, "lower decile of the time of one call"),
    Metric("anchor_latency", "s", "lower", "canary", 1, "lower decile of the time of one call of the dense model"),
    Metric("yardstick", "s", "lower", "machine", 1, "lower decile of the time of fixed work, measured side by side"),
    Metric("relative_time", "1", "lower", "speed", 1, "time over that of the dense model, measured side by side"),
    Metric("strongest_ratio", "1", "lower", "shown", 1, "time over that of the strongest dense model on this machine"),
    Metric("twin", "1", "neither", "control", 1, "time of the dense model over its own: must not differ from 1"),
    Metric("slowed_twin", "1", "neither", "control", 1, "time of a slowed dense model over its own: must be caught"),
    Metric("flipped_twin", "1", "neither", "control", 1, "top-1 with some predictions spoilt: must be caught"),
    Metric("spoilt_twin", "1", "neither", "control", 2, "score of outputs of other examples: must be worse"),
)

for _metric in SUITE:
    register(_metric)
