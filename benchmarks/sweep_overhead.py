"""What a sweep costs beyond training: Ray, the study, the registry.

    python benchmarks/sweep_overhead.py            # 8 runs of about 20 s, two at a time: 3 minutes
    python benchmarks/sweep_overhead.py --full     # and 200 runs of one step: memory and files of the driver

The peer is the training alone: the same recipes in bare processes of our training loop, two at a time, without Ray. The
seconds of pure training are the sum over its runs of what a run takes from its first step to its last checkpoint.
"""

import argparse
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from reporting import bar, report

RUNS, WORKERS = 8, 2


def recipe_values(corpus: str, steps: int) -> dict[str, Any]:
    return {
        "name": "overhead",
        "corpus": {"source": corpus},
        "model": {"layers": 4, "heads": 4, "width": 128, "context": 64},
        "training": {"steps": steps, "batch_size": 12, "warmup_steps": 0, "evaluate_every": max(1, steps // 4)},
    }


def sweep_file(name: str, corpus: str, steps: int, runs: int) -> Any:
    from voicechat_tune.sweep_file import SweepFile

    rates = [{"training.learning_rate": 0.001 + 0.0001 * number} for number in range(runs)]
    return SweepFile.model_validate({"name": name, "recipe": recipe_values(corpus, steps), "points": rates})


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
    """The driver's memory and open files, and the memory of Ray's idle processes, while a sweep runs."""

    def __init__(self):
        self.process, self.over = psutil.Process(), threading.Event()
        self.memory: list[float] = []
        self.ray_memory = 0.0
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.over.wait(1):
            self.memory.append(self.process.memory_info().rss / 2**20)
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


def run_watched(sweep: Any) -> tuple[float, Watch, int, int]:
    """Seconds of the sweep, what was watched, and the driver's open files before and after."""
    from voicechat_tune.run import run_sweep

    files, watch, began = psutil.Process().num_fds(), Watch(), time.perf_counter()
    outcome = run_sweep(sweep)
    seconds = time.perf_counter() - began
    watch.over.set()
    assert outcome.complete, outcome
    return seconds, watch, files, psutil.Process().num_fds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare-plays")
    parser.add_argument("--steps", type=int, default=240, help="of each run: about 20 s")
    parser.add_argument("--full", action="store_true", help="and 200 runs of one step")
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"VOICECHAT_HOME": home, "VOICECHAT_CPUS": str(WORKERS), "OMP_NUM_THREADS": "1"}
        from voicechat_platform.cluster import start_ray, stop_ray

        jobs = [(arguments.corpus, arguments.steps, number) for number in range(RUNS)]
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            pure = sum(pool.map(bare_run, jobs, chunksize=1))
        began = time.perf_counter()
        start_ray()
        ray_start = time.perf_counter() - began
        seconds, watch, *_ = run_watched(sweep_file("eight", arguments.corpus, arguments.steps, RUNS))
        results = [
            {
                "runs": RUNS,
                "pure training / 2, s": pure / WORKERS,
                "sweep, s": seconds,
                "ray start, s": ray_start,
                "driver, MiB": max(watch.memory),
                "ray's own processes, MiB": watch.ray_memory,
                "driver's growth a run, KiB": None,
                "files left open": 0,
            }
        ]
        bars = [bar("(sweep - ray start) / (pure training / 2)", seconds / (pure / WORKERS), 1.15)]
        if arguments.full:
            small = sweep_file("many", arguments.corpus, 1, 200)
            seconds, watch, before, after = run_watched(small)
            tenth = len(watch.memory) // 10
            growth = (watch.memory[-1] - watch.memory[tenth]) * 1024 / (200 * 0.9)
            results.append(
                {
                    "runs": 200,
                    "pure training / 2, s": None,
                    "sweep, s": seconds,
                    "ray start, s": 0.0,
                    "driver, MiB": max(watch.memory),
                    "ray's own processes, MiB": watch.ray_memory,
                    "driver's growth a run, KiB": growth,
                    "files left open": after - before,
                }
            )
            bars.append(bar("driver's growth a run, KiB", growth, 100))
            bars.append(bar("files left open after 200 runs", after - before, 10))
        stop_ray()
        report("sweep_overhead", results, bars)


if __name__ == "__main__":
    main()
