"""What a fresh process does that times some cases; see `processes`, which starts it."""

from __future__ import annotations

import json
import random
from importlib import import_module
from pathlib import Path

from pruning_bench.artifacts import load
from pruning_bench.cases import parse_id
from pruning_bench.discover import discover, import_files
from pruning_bench.measuring import measure_latency
from pruning_bench.own import read_settings
from pruning_bench.records import to_line, write_atomically
from pruning_bench.workbench import Workbench


def main(request_file: str) -> None:
    """Times the cases of the request, in an order of its own, and writes their measurements beside it."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    discover()
    for file in request["settings"]:
        read_settings(Path(file).parent).register()
    for module in request["modules"]:
        import_module(module)
    import_files(request["files"])
    folder = Path(request["folder"]) if request["folder"] else None
    bench = Workbench(
        folder=folder,
        full=request["full"],
        checkpoints=Path(request["checkpoints"]),
        rivals=tuple((runtime, recipe) for runtime, recipe in request["rivals"]),
    )
    for case_id, file in request["artifacts"].items():
        bench.put(parse_id(case_id), load(file))
    cases = [parse_id(case_id) for case_id in request["cases"]]
    random.Random(request["seed"]).shuffle(cases)
    lines = [to_line(m) for case in cases for m in measure_latency(bench, case, seed=request["seed"])]
    write_atomically(Path(request["output"]), "\n".join(lines) + "\n")
