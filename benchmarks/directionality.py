"""Which metrics can look back? Copying the previous token, and induction, for heads of each kind.

    python benchmarks/directionality.py            # about 8 minutes on two cores
    python benchmarks/directionality.py --seeds 1  # a third of that

The derivation: a positive definite metric without rotary positions gives s_ij <= (s_ii + s_jj) / 2, so a token can
prefer the one before it to itself only if self-scores fall from each position to the next, and over a long sequence
that gets expensive. An indefinite symmetric metric has no such bound, and rotary positions give every metric a
direction. "copy": one layer, each label is the token before. "induction": two layers, a random sequence said twice,
the second saying counts. Values are separate everywhere, so that the scores alone differ. The peer is standard
attention. Chance is 1/32.

Letters: b batch, t position.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from reporting import report

from voicechat_platform.corpora.batches import IGNORED, Batch
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.models.readouts import attention_weights
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe

VOCABULARY, LENGTH, BATCH = 32, 64, 32
TOKENIZER = make_tokenizer("characters", 0, "".join(map(chr, range(48, 48 + VOCABULARY))))
METRICS = ("symmetric", "positive_definite", "identity")


@dataclass(frozen=True)
class LookingBack:
    """Random tokens to be copied, or said twice."""

    task: str
    source: str = "random tokens"
    sha256: str = ""
    characters_per_token: float = 1.0
    reply_stops: None = None
    tokenizer: Any = TOKENIZER

    def batches(self, batch_size: int, context: int, seed: int) -> "Draws":
        return Draws(self, batch_size, torch.Generator().manual_seed(seed))

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        yield Draws(self, 500, torch.Generator().manual_seed(10**6)).draw()


@dataclass
class Draws:
    data: LookingBack
    batch_size: int
    generator: torch.Generator

    def draw(self) -> Batch:
        if self.data.task == "copy":
            inputs_bt = torch.randint(VOCABULARY, (self.batch_size, LENGTH), generator=self.generator)
            labels_bt = inputs_bt.roll(1, dims=1)
            labels_bt[:, 0] = IGNORED
            return inputs_bt, labels_bt
        once_bt = torch.randint(VOCABULARY, (self.batch_size, LENGTH // 2), generator=self.generator)
        twice_bt = once_bt.repeat(1, 2)
        labels_bt = twice_bt.roll(-1, dims=1)
        labels_bt[:, : LENGTH // 2] = IGNORED
        labels_bt[:, -1] = IGNORED
        return twice_bt, labels_bt

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def trial(task: str, attention: str, positions: str, seed: int, steps: int) -> tuple[float, float]:
    """Accuracy of the likeliest token over 500 fresh sequences; the sharpest head's mean weight where it should look:
    one position back for the copy, and for induction one position after the token's first saying."""
    kind = {"attention": "standard"} if attention == "standard" else {"attention": "metric", "metric": attention}
    recipe = Recipe.model_validate(
        {
            "seed": seed,
            "model": {
                **kind,
                "values": "separate",
                "positions": positions,
                "layers": 1 if task == "copy" else 2,
                "heads": 2,
                "width": 64,
                "context": LENGTH,
            },
            "training": {
                "steps": steps,
                "batch_size": BATCH,
                "learning_rate": 0.005,
                "warmup_steps": steps // 20,
                "evaluate_every": steps,
            },
        }
    )
    data = LookingBack(task)
    training = Training(recipe, data)
    list(training.evaluations())
    inputs_bt, labels_bt = next(data.validation(LENGTH, None))
    with torch.no_grad():
        found_bt = training.model.eval()(input_ids=inputs_bt).logits.argmax(-1)
    right = (found_bt == labels_bt)[labels_bt != IGNORED].float().mean().item()
    back = 1 if task == "copy" else LENGTH // 2 - 1
    weights_lbhts = attention_weights(training.model, inputs_bt[:50])
    sharpness = [
        weights_bhts.diagonal(-back, dim1=-2, dim2=-1)[..., 1:].mean((0, 2)).max() for weights_bhts in weights_lbhts
    ]
    return right, float(max(sharpness))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    results = []
    for task in ("copy", "induction"):
        for positions in ("learned", "rotary"):
            for attention in ("standard", *METRICS):
                found = [
                    trial(task, attention, positions, seed, arguments.steps) for seed in range(1, arguments.seeds + 1)
                ]
                row = {
                    "task": task,
                    "positions": positions,
                    "attention": attention,
                    "accuracy": statistics.mean(right for right, _ in found),
                    "lowest": min(right for right, _ in found),
                    "highest": max(right for right, _ in found),
                    "weight": statistics.mean(weight for _, weight in found),
                }
                print(row, flush=True)
                results.append(row)
    report("directionality", results, [])


if __name__ == "__main__":
    main()
