"""What a sweep costs beyond training: Ray, the study, the registry.

    python benchmarks/sweep_overhead.py            # 8 runs of about 20 s, two at a time: 3 minutes
    python benchmarks/sweep_overhead.py --many     # 200 runs of one step: memory and files of the driver

The peer is the training alone: the same recipes in bare processes of our training loop, two at a time, without Ray. The
seconds of pure training are the sum over its runs of what a run takes from its first step to its last checkpoint.
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from reporting import bar, report

RUNS, MANY, WORKERS = 8, 200, 2


def recipe_values(corpus: str, steps: int) -> dict[str, Any]:
    return {
        "name": "overhead",
        "corpus": {"source": corpus},
        "model": {"layers": 4, "heads": 4, "width": 128, "context": 64},
        "training": {"steps": steps, "batch_size": 12, "warmup_steps": 0, "evaluate_every": max(1, steps // 4)},
    }


def sweep_file(name: str, recipe: dict[str, Any], runs: int) -> Any:
    from voicechat_tune.search.sweep_file import SweepFile

    rates = [{"training.learning_rate": 0.001 + 0.0001 * number} for number in range(runs)]
    return SweepFile.model_validate({"name": name, "recipe": recipe, "points": rates})


def bare_run(job: tuple[str, int, int]) -> float:
    """Seconds that a run of our training loop takes, its checkpoints included."""
    from voicechat_platform.training.loop import Training
    from voicechat_platform.training.recipe import Recipe
    from voicechat_platform.training.run_folder import RunFolder
    from voicechat_platform.training.starting_point import load_data

    corpus, steps, number = job
    torch.set_num_threads(1)
    values = recipe_values(corpus, steps)
    values["training"]["learning_rate"] = 0.001 + 0.0001 * number
    recipe = Recipe.model_validate(values)
    data = load_data(recipe)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        for _ in run.train(Training(recipe, data)):
            pass
        run.finish(data)
    return time.perf_counter() - began


class Watch:
    """The driver's memory (MiB) and open files, and the memory of Ray's idle processes, while a sweep runs."""

    def __init__(self):
        self.process, self.over = psutil.Process(), threading.Event()
        self.memory: list[float] = []
        self.files: list[int] = []
        self.ray_memory = 0.0
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.over.wait(1):
            self.memory.append(self.process.memory_info().rss / 2**20)
            self.files.append(self.process.num_fds())
            of_ray = [child for child in self.process.children(recursive=True) if "ImplicitFunc" not in name_of(child)]
            self.ray_memory = max(self.ray_memory, sum(memory_of(child) for child in of_ray))


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def memory_of(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


def run_watched(sweep: Any) -> tuple[float, Watch]:
    """Seconds of the sweep, and what was watched."""
    from voicechat_tune.running.run import run_sweep

    watch, began = Watch(), time.perf_counter()
    outcome = run_sweep(sweep)
    seconds = time.perf_counter() - began
    watch.over.set()
    assert outcome.complete, outcome
    return seconds, watch


def eight_long_runs(corpus: str, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from voicechat_platform.cluster import start_ray

    jobs = [(corpus, steps, number) for number in range(RUNS)]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pure = sum(pool.map(bare_run, jobs, chunksize=1))
    began = time.perf_counter()
    start_ray()
    ray_start = time.perf_counter() - began
    seconds, watch = run_watched(sweep_file("eight", recipe_values(corpus, steps), RUNS))
    row = {
        "runs": RUNS,
        "pure training / 2, s": pure / WORKERS,
        "sweep after ray's start, s": seconds,
        "ray's start, s": ray_start,
        "driver, MiB": max(watch.memory),
        "ray's own processes, MiB": watch.ray_memory,
    }
    return row, [bar("sweep after ray's start / (pure training / 2)", seconds / (pure / WORKERS), 1.15)]


def many_short_runs(corpus: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    values = recipe_values(corpus, steps=1)
    values["corpus"]["validation_fraction"] = 0.002
    seconds, watch = run_watched(sweep_file("many", values, MANY))
    half = len(watch.memory) // 2  # Ray is up and all that is loaded lazily is there by then
    rest = range(half, len(watch.memory))
    growth = statistics.linear_regression(rest, watch.memory[half:]).slope * len(rest) * 1024 / (MANY / 2)
    left_open = max(watch.files[-10:]) - max(watch.files[half : half + 10])
    row = {
        "runs": MANY,
        "sweep, s": seconds,
        "driver, MiB": max(watch.memory),
        "ray's own processes, MiB": watch.ray_memory,
        "driver's growth a run, KiB": growth,
        "files left open": left_open,
    }
    return row, [bar("driver's growth a run, KiB", growth, 100), bar("files left open", left_open, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare-plays")
    parser.add_argument("--steps", type=int, default=240, help="of each of the eight runs: about 20 s")
    parser.add_argument(
        "--many", action="store_true", help="200 runs of one step instead: the driver's memory and files"
    )
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"VOICECHAT_HOME": home, "VOICECHAT_CPUS": str(WORKERS), "OMP_NUM_THREADS": "1"}
        from voicechat_platform.cluster import stop_ray

        row, bars = (
            many_short_runs(arguments.corpus) if arguments.many else eight_long_runs(arguments.corpus, arguments.steps)
        )
        stop_ray()
        report("sweep_overhead", [row], bars)


if __name__ == "__main__":
    main()
