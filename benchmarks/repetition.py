"""How often the served chat model's answers become loops, with its own sampling and with others.

Each of the questions in spoken_questions.txt is asked with every sampling, many at a time, in this process and by the
service's own engine. A loop is five words in a row that an answer says three times, or, outside of lists, three or four
words said three times running; the answer is cut there. Answers have at most 400 tokens.

    python benchmarks/repetition.py [--questions 40] [--sampling frequency_penalty=0.5,presence_penalty=0]...
"""

import argparse
import asyncio
import json
import re
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from statistics import mean
from typing import Any

from reporting import bar, report

from voicechat_platform.assets import CATALOGUE, locate_gguf
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling

MODEL = "smollm2-135m-instruct"
QUESTIONS = (Path(__file__).parent / "spoken_questions.txt").read_text().splitlines()
SERVED = "as served"
MOST_TOKENS = 400
SEED = 31
STREAMS = 16
"""Answers written together."""
CHECKED_EVERY = 20
"""Tokens between two looks for a loop."""
LIST_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="so many of them, evenly chosen")
    parser.add_argument("--sampling", action="append", default=[], help="NAME=NUMBER,... to compare with")
    parser.add_argument("--instructions", default="", help="a system prompt  [default: the chat template's]")
    parser.add_argument("--answers", type=Path, help="a file for the answers, one a line, to read them")
    arguments = parser.parse_args()
    questions = [QUESTIONS[place * len(QUESTIONS) // arguments.questions] for place in range(arguments.questions)]
    system = [{"role": "system", "content": arguments.instructions}] if arguments.instructions else []
    conversations = [[*system, {"role": "user", "content": question}] for question in questions]
    own = CATALOGUE[MODEL].sampling
    plain = {"temperature": own["temperature"], "top_p": own["top_p"]}
    samplings = {"without penalties": plain, SERVED: own}
    for text in arguments.sampling:
        pairs = (pair.partition("=") for pair in text.split(","))
        samplings[text] = plain | {name: float(value) for name, _, value in pairs}
    answers = asyncio.run(ask(conversations, samplings, arguments.answers))
    results = []
    for name in samplings:
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
    served = next(result for result in results if result["sampling"] == SERVED)
    report("repetition", results, [bar("loops as served / questions", served["loops"] / len(questions), 0.01)])


async def ask(
    conversations: list[list[Message]], samplings: dict[str, dict[str, Any]], file: Path | None
) -> list[dict[str, Any]]:
    """Every answer to every conversation."""
    path = locate_gguf(MODEL)
    tokenizer = ChatTokenizer(path)
    engine = make_engine(path, tokenizer)
    places = asyncio.Semaphore(STREAMS)

    async def answer(number: int, messages: list[Message], name: str) -> dict[str, Any]:
        sampling = Sampling(**samplings[name], max_tokens=MOST_TOKENS, seed=SEED + number)
        request = GenerationRequest(prompt_ids=tokenizer.encode_chat(messages), sampling=sampling)
        text, count, reason = "", 0, None
        async with places, aclosing(engine.generate(request)) as batches:
            async for tokens in batches:
                text += "".join(token.text for token in tokens)
                count, reason, before = count + len(tokens), tokens[-1].finish_reason, count
                if count // CHECKED_EVERY > before // CHECKED_EVERY and is_loop(text):
                    break
        given = {"sampling": name, "question": messages[-1]["content"], "text": text, "tokens": count}
        given |= {"loop": is_loop(text), "ended": reason == "stop"}
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(given) + "\n")
        return given

    asked = [answer(number, each, name) for name in samplings for number, each in enumerate(conversations)]
    answers = await asyncio.gather(*asked)
    engine.close()
    return answers


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
