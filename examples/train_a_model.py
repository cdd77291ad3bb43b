"""Train a small GPT on a text file, and let it write.

python examples/train_a_model.py my-text.txt --steps 500 --out my-model
"""

import argparse
from pathlib import Path

from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import CorpusRecipe, ModelRecipe, Recipe, TrainingRecipe
from voicechat_platform.training.starting_point import load_data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path, help="a UTF-8 file, better of some hundred thousand characters")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--context", type=int, default=128, help="the longest sequence, in tokens")
    parser.add_argument("--out", type=Path, default=Path("my-model"), help="folder for the checkpoint")
    parser.add_argument("--prompt", default="The ", help="what the model goes on from")
    arguments = parser.parse_args()

    # The same fields as in tune/recipes/*.yaml; whatever is left out has a default.
    recipe = Recipe(
        name="my-model",
        corpus=CorpusRecipe(source=str(arguments.text), tokenizer="characters"),
        model=ModelRecipe(attention="metric", layers=4, heads=4, width=128, context=arguments.context),
        training=TrainingRecipe(
            steps=arguments.steps, warmup_steps=arguments.steps // 10, evaluate_every=max(1, arguments.steps // 5)
        ),
    )
    training = Training(recipe, load_data(recipe))
    for evaluation in training.evaluations():
        print(f"step {evaluation.step}: validation loss {evaluation.validation_loss:.3f} nats per token")
    training.save(arguments.out)

    # A checkpoint is a folder that transformers can read; `voicechat generate my-model` writes, too.
    model, tokenizer = load_checkpoint(arguments.out)
    prompt_ids = tokenizer(arguments.prompt, return_tensors="pt").input_ids
    written_ids = model.generate(prompt_ids, max_new_tokens=200, do_sample=True, temperature=0.8)
    print(tokenizer.decode(written_ids[0]))


if __name__ == "__main__":
    main()
