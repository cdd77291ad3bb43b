"""Time and memory of one training step, against transformers' LlamaForCausalLM of the same shape.

    python benchmarks/training_speed.py            # about 5 minutes on two cores
    python benchmarks/training_speed.py --full     # more rounds
    python benchmarks/training_speed.py --device cuda --short

Every model takes the same step: forward, mean loss, backward, clipping, fused AdamW. The models step in turn, so that
what else the machine does meets all of them; the figure is the median. Memory is the peak of a process of its own that
takes three steps, less what it held before the model was made.

Letters: b batch, t position.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from reporting import bar, report
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.training.evaluation import loss_sum
from voicechat_platform.training.throughput import peak_flops, peak_memory, training_flops

VOCABULARY = 65
PEER = "LlamaForCausalLM"
OURS = {
    "standard": {},
    "metric, symmetric, tied": {"attention": "metric"},
    "metric, signed diagonal, tied": {"attention": "metric", "metric": "signed_diagonal"},
    "metric, shared projection, tied": {"attention": "metric", "projection": "shared"},
    "metric, symmetric, separate": {"attention": "metric", "values": "separate"},
    "standard, squared ReLU": {"mlp": "relu_squared"},
}
# layers, heads, width, context, batch
SHAPES = {"4x128": (4, 4, 128, 64, 12), "6x384": (6, 6, 384, 256, 12)}


def make(name: str, shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    layers, heads, width, context, _ = SHAPES[shape]
    ours = GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        **OURS.get(name, {}),
    )
    if name != PEER:
        return GPTForCausalLM(ours).train()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=ours.intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
        )
    ).train()


def stepper(model: PreTrainedModel, shape: str, device: torch.device) -> Callable[[], None]:
    *_, context, batch = SHAPES[shape]
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    inputs_bt, labels_bt = (torch.randint(VOCABULARY, (batch, context), device=device) for _ in range(2))

    def step() -> None:
        (loss_sum(model, inputs_bt, labels_bt) / labels_bt.numel()).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(shape: str, rounds: int, steps: int, device: torch.device) -> list[dict]:
    models = {name: make(name, shape) for name in (PEER, *OURS)}
    steppers = {name: stepper(model, shape, device) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):
        for name, step in steppers.items():
            started = time.perf_counter()
            for _ in range(steps):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first is for warming up
                times[name].append((time.perf_counter() - started) / steps)
    *_, context, batch = SHAPES[shape]
    medians = {name: statistics.median(values) for name, values in times.items()}
    peak = peak_flops(device, torch.float32)
    return [
        {
            "shape": shape,
            "model": name,
            "parameters": models[name].num_parameters(),
            "step_ms": 1000 * medians[name],
            "of_peer": medians[name] / medians[PEER],
            "of_standard": medians[name] / medians["standard"],
            "tokens_per_second": round(batch * context / medians[name]),
            "of_peak_flops": training_flops(models[name], context) * batch * context / medians[name] / peak,
            "mflops_per_token": training_flops(models[name], context) / 1e6,
            "memory_mib": memory(name, shape, device),
        }
        for name in models
    ]


def memory(name: str, shape: str, device: torch.device) -> float:
    """MiB, in a process of its own."""
    told = subprocess.run(
        [sys.executable, __file__, "--device", device.type, "--memory", name, shape],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(told.stdout)


def tell_memory(name: str, shape: str, device: torch.device) -> None:
    before = peak_memory(device)
    step = stepper(make(name, shape), shape, device)
    for _ in range(3):
        step()
    print(peak_memory(device) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="four times the rounds")
    parser.add_argument("--short", action="store_true", help="a quarter of the rounds, and no bars")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.memory:
        return tell_memory(*arguments.memory, device)
    rounds = 44 if arguments.full else 3 if arguments.short else 11
    results = [*measure("4x128", rounds, 20, device), *measure("6x384", rounds, 2, device)]
    if arguments.short:  # the bars are those of a CPU
        return report("training_speed", results, [])
    found = {(row["shape"], row["model"]): row for row in results}
    large, peer = found["6x384", "standard"], found["6x384", PEER]
    report(
        "training_speed",
        results,
        [
            bar("standard of Llama at 4x128", found["4x128", "standard"]["of_peer"], 0.85),
            bar("standard of Llama at 6x384", large["of_peer"], 0.93),
            bar("tied metric of standard at 6x384", found["6x384", "metric, symmetric, tied"]["of_standard"], 0.85),
            bar("memory of Llama's at 6x384", large["memory_mib"] / peer["memory_mib"], 1.0),
        ],
    )
    return None


if __name__ == "__main__":
    main()
