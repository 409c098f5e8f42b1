"""bin/train: command line in, exit status out.

0: done; 2: a wrong flag; 3: NaN or infinity occurred; 1: any other error that the user can fix;
130 and 143: interrupted. TensorFlow is loaded only once the command line has been found right.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

from lab.compare import formats, results, table
from lab.errors import LabError
from lab.processes import cluster, pool
from lab.processes.stop import Stop
from lab.record.directory import FINISHED, RESULT
from lab.settings import command_line
from lab.settings.config import Config, Settings
from lab.settings.fields import REFERENCE
from lab.terminal import fail, load_tensorflow, program
from lab.training.progress import Console, Reporter, conclusion

_STARTED = time.monotonic()


@program
def train() -> int:
    """One run or a grid of them, from flags to result.json and the table."""
    try:
        configs, settings = command_line.parse(sys.argv)
    except LabError as error:
        return fail("train", error, 2)
    try:
        if len(configs) == 1 and not settings.grid and settings.shard == "0/1":
            return _train_here(configs[0], settings)
        if not configs:
            print(f"--shard={settings.shard}: this shard has no runs")
            return 0
        with Stop() as stop:
            outcomes = pool.run(configs, settings, stop)
        print(_table(configs, outcomes), end="")
        return stop.status if stop.signal else max(FINISHED.get(o, 1) for o in outcomes.values())
    except LabError as error:
        return fail("train", error, 1)
    except KeyboardInterrupt:
        return fail("train", "interrupted before the first step: nothing was recorded", 130)


def _train_here(config: Config, settings: Settings) -> int:
    """One run needs no worker: the same trial.run, in this process."""
    workers = cluster.from_environment()
    if workers:
        cluster.meet(workers)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        from lab import data

        # Unpacking the data and loading TensorFlow take about a second each.
        loading = None
        if not REFERENCE.fullmatch(config.data):
            loading = thread.submit(data.load, config.data)
        load_tensorflow()
        from lab.step.placement import slurm_cluster
        from lab.training import trial
        from lab.training.problem import problem_of

        problem = problem_of(config, loading.result() if loading else None)
    if not workers and (workers := slurm_cluster()):
        cluster.meet(workers)
    chief = not workers or workers.index == 0
    reporter = Console() if chief else Reporter()
    with Stop(f"train: {trial.CUT_SHORT}") as stop:
        path, result = trial.run(config, settings, problem, reporter, stop, _STARTED, workers)
    if chief:
        print(conclusion(result, path))
    return FINISHED.get(result["status"], stop.status)


def _table(configs: Sequence[Config], outcomes: dict[str, str]) -> str:
    """The table of a grid's runs, as far as they have a result."""
    paths = {directory: pathlib.Path(directory, RESULT) for directory in outcomes}
    found, problems = results.read_files([path for path in paths.values() if path.exists()])
    problems += [f"{d}: {outcomes[d]}" for d, path in paths.items() if not path.exists()]
    order = [dataclasses.asdict(config) for config in configs]
    return formats.to_text(table.make_table(found, problems=problems, order=order))


if __name__ == "__main__":
    sys.exit(train())
