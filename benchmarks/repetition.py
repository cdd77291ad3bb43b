"""How often the served chat model's answers become loops, with its own sampling and with other repetition penalties.

Each of the questions in spoken_questions.txt is asked with one sampling after the other, in this process and with the
call that the model's engine makes, but many at a time. A loop is five words in a row that an answer says three times,
or, outside of lists, three or four words said three times running; the answer is cut there. Answers have at most 400
tokens.

    python benchmarks/repetition.py [--questions 40] [--penalties 1,1.05,1.1] [--answers answers.jsonl]
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import ctranslate2
from reporting import bar, report

from voicechat_platform.assets import locate
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.generation.engines.interface import Sampling

MODEL = "smollm2-135m-instruct-int8"
QUESTIONS = (Path(__file__).parent / "spoken_questions.txt").read_text().splitlines()
SERVED = "as served"
MOST_TOKENS = 400
SEED = 31
STREAMS = 2
BATCH = 20
"""Answers written together, which costs a third of what each alone does."""
CHECKED_EVERY = 20
"""Tokens between two looks for a loop."""
LIST_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="so many of them, evenly chosen")
    parser.add_argument("--penalties", default="1", help="to compare the model's own with  [default: 1, which is none]")
    parser.add_argument("--instructions", default="", help="a system prompt  [default: the chat template's]")
    parser.add_argument("--answers", type=Path, help="a file for the answers, one a line, to read them")
    arguments = parser.parse_args()
    questions = [QUESTIONS[place * len(QUESTIONS) // arguments.questions] for place in range(arguments.questions)]
    system = [{"role": "system", "content": arguments.instructions}] if arguments.instructions else []
    conversations = [[*system, {"role": "user", "content": question}] for question in questions]
    penalties = {f"penalty {value}": {"repetition_penalty": float(value)} for value in arguments.penalties.split(",")}
    answers = ask(conversations, penalties | {SERVED: {}}, arguments.answers)
    results = []
    for name in (*penalties, SERVED):
        given = [answer for answer in answers if answer["sampling"] == name]
        results.append(
            {
                "sampling": name,
                "questions": len(given),
                "loops": sum(answer["loop"] for answer in given),
                "tokens, mean": mean(answer["tokens"] for answer in given),
                "ended by themselves, %": 100 * mean(answer["ended"] for answer in given),
            }
        )
    report("repetition", results, [bar("loops as served / questions", results[-1]["loops"] / len(questions), 0.02)])


def ask(
    conversations: list[list[Message]], samplings: dict[str, dict[str, Any]], file: Path | None
) -> list[dict[str, Any]]:
    """Every answer. Each stream has a generator of its own, and with it a thread that draws its own random numbers."""
    ctranslate2.set_random_seed(SEED)
    folder = locate(MODEL)
    tokenizer = ChatTokenizer(folder)
    batches = [conversations[start : start + BATCH] for start in range(0, len(conversations), BATCH)]

    def stream(first: int) -> list[dict[str, Any]]:
        generator = ctranslate2.Generator(str(folder), compute_type="int8", inter_threads=1, intra_threads=1)
        answers: list[dict[str, Any]] = []
        for batch in batches[first::STREAMS]:
            for name, own in samplings.items():
                texts = answered(generator, tokenizer, batch, replace(tokenizer.sampling, **own))
                given = zip(batch, texts, strict=True)
                made = [{"sampling": name, "question": asked[-1]["content"]} | text for asked, text in given]
                answers += made
                if file:
                    with file.open("a") as lines:
                        lines.writelines(json.dumps(answer) + "\n" for answer in made)
        return answers

    with ThreadPoolExecutor(STREAMS) as threads:
        return [answer for answers in threads.map(stream, range(STREAMS)) for answer in answers]


def answered(
    generator: ctranslate2.Generator, tokenizer: ChatTokenizer, batch: Sequence[list[Message]], sampling: Sampling
) -> list[dict[str, Any]]:
    """The answers of a batch, with the options that `CTranslate2Engine` gives for each alone."""
    ids: list[list[int]] = [[] for _ in batch]
    loops = [False] * len(batch)

    def receive(step: ctranslate2.GenerationStepResult) -> bool:
        own = ids[step.batch_id]
        own.append(step.token_id)
        loops[step.batch_id] = len(own) % CHECKED_EVERY == 0 and is_loop(tokenizer.decode(own))
        return loops[step.batch_id]

    generator.generate_batch(
        [[tokenizer.name(token_id) for token_id in tokenizer.encode_chat(messages)] for messages in batch],
        max_length=MOST_TOKENS,
        sampling_topk=sampling.top_k,
        sampling_topp=sampling.top_p,
        sampling_temperature=sampling.temperature,
        repetition_penalty=sampling.repetition_penalty,
        end_token=tokenizer.end_ids,
        return_end_token=True,
        include_prompt_in_result=False,
        callback=receive,
    )
    return [
        {
            "text": tokenizer.decode(own),
            "tokens": len(own),
            "loop": loop or is_loop(tokenizer.decode(own)),
            "ended": own[-1] in tokenizer.end_ids,
        }
        for own, loop in zip(ids, loops, strict=True)
    ]


def is_loop(text: str) -> bool:
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())
    said = Counter(zip(*(words[start:] for start in range(5)), strict=False))
    if max(said.values(), default=0) >= 3:
        return True
    is_list = len(LIST_ITEM.findall(text)) > 1
    return not is_list and any(
        words[start : start + length]
        == words[start + length : start + 2 * length]
        == words[start + 2 * length : start + 3 * length]
        for length in (3, 4)
        for start in range(len(words) - 3 * length + 1)
    )


if __name__ == "__main__":
    main()
