"""The calls of tools that a client gets: of the engine that serves a model, with the grammar of its tools."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from voicechat_platform.training.calls_evaluation import LONGEST_ANSWER, Call, Turn
from voicechat_serve.generation.answer_form import Tool, ToolUse
from voicechat_serve.generation.engines.choice import open_model
from voicechat_serve.generation.loaded_model import GenerationOptions, LoadedModel

AT_ONCE = 8
"""The number of answers in the engine's batch."""


def served_calls(path: Path, turns: Sequence[Turn]) -> list[tuple[Turn, list[Call] | None]]:
    """Return each turn with the calls of the model's answer, the likeliest tokens that the grammar allows; None for an
    answer that was cut off in a call.

    Args:
        path: a Hugging Face model directory, or a GGUF file.

    Raises:
        InputError: no engine can run the model, or a conversation does not fit its template.
    """
    tokenizer, engine = open_model(path)
    try:
        return asyncio.run(all_answers(LoadedModel(tokenizer, engine, path.name), turns))
    finally:
        engine.close()


async def all_answers(model: LoadedModel, turns: Sequence[Turn]) -> list[tuple[Turn, list[Call] | None]]:
    free = asyncio.Semaphore(AT_ONCE)

    async def answered(turn: Turn) -> tuple[Turn, list[Call] | None]:
        async with free:
            return turn, await calls_of(model, turn)

    return await asyncio.gather(*map(answered, turns))


async def calls_of(model: LoadedModel, turn: Turn) -> list[Call] | None:
    functions = [tool["function"] for tool in turn.conversation.tools]
    tools = tuple(
        Tool(name=each["name"], description=each["description"], parameters=each["parameters"]) for each in functions
    )
    sampling = {"temperature": 0.0, "max_tokens": LONGEST_ANSWER}
    options = GenerationOptions(sampling=sampling, tools=ToolUse(tools=tools))
    names, arguments = list[str](), list[str]()
    async with aclosing(model.chat(turn.conversation.messages[: turn.place], options)) as deltas:
        async for delta in deltas:
            for piece in delta.calls:
                if piece.name:
                    names.append(piece.name)
                    arguments.append("")
                arguments[piece.index] += piece.arguments
    try:
        return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    except ValueError:
        return None
