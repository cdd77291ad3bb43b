"""Run a small sweep from Python, and print which attention won.

    python examples/sweep.py                      # examples/own_attention_sweep.yaml: six runs
    python examples/sweep.py --trials 2 --steps 20

The same on the command line: voicechat sweep examples/own_attention_sweep.yaml. Both go on where they were broken off.
"""

import argparse
from pathlib import Path

from voicechat_platform.cluster import stop_ray
from voicechat_tune.running.run import run_sweep
from voicechat_tune.search.sweep_file import read_sweep


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name("own_attention_sweep.yaml"))
    parser.add_argument("--trials", type=int, help="only so many; all of the grid by default")
    parser.add_argument("--steps", type=int, help="of each run; the file's by default")
    arguments = parser.parse_args()

    sweep = read_sweep(arguments.file)
    if arguments.trials:
        sweep = sweep.model_copy(update={"trials": arguments.trials})
    if arguments.steps:
        steps = {"steps": arguments.steps, "warmup_steps": arguments.steps // 10, "evaluate_every": arguments.steps}
        training = sweep.recipe.training.model_copy(update=steps)
        sweep = sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"training": training})})

    try:
        outcome = run_sweep(sweep)  # --fresh of the command is fresh=True
    finally:
        stop_ray()
    for version in outcome.finished:  # the best first; each is in the registry, with its checkpoint
        print(
            f"{version}  {version.attention:10}{version.parameters:>10,} parameters  {version.nats_per_character:.4f}"
        )
    if outcome.best:
        print(f"The winner is {outcome.best.attention} attention. Serve it: voicechat promote {outcome.best}")


if __name__ == "__main__":
    main()
