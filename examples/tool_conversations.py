"""Write conversations with calls of eight tools: a corpus to tune a model on, and another one to evaluate it on.

python examples/tool_conversations.py tool-conversations

The folder then has train.jsonl and held-out.jsonl, always the same for a seed. The held-out conversations have other
sentences, other cities, people and sweeps. Change the tools and the sentences for your own.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Split = int
"""0 for the training part, 1 for the held-out part: an index of all pairs below."""


@dataclass(frozen=True)
class Said:
    """An argument, and how a person says it."""

    value: Any
    words: str


@dataclass(frozen=True)
class Skill:
    """A tool, and sentences that need it."""

    name: str
    description: str
    properties: dict[str, Any]
    draw: Callable[[random.Random, Split], dict[str, Said]]
    """Returns the arguments."""
    sentences: tuple[tuple[str, ...], tuple[str, ...]]
    answer: Callable[[random.Random, dict[str, Any]], tuple[str, str]]
    """Returns the tool's result for the arguments, and what the assistant says then."""

    def tool(self) -> dict[str, Any]:
        """Return the tool as clients of OpenAI's API describe it."""
        parameters = {
            "type": "object",
            "properties": self.properties,
            "required": list(self.properties),
            "additionalProperties": False,
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


CITIES = (
    ("Paris", "Berlin", "Tokyo", "Madrid", "Oslo", "Cairo", "Lima", "Boston", "Chicago", "Vienna", "Prague", "Dublin",
     "Athens", "Seoul", "Mumbai", "Nairobi", "Toronto", "Sydney", "New York", "Hong Kong", "Cape Town", "Leeds"),
    ("Rome", "London", "Lisbon", "Zurich", "Warsaw", "Delhi", "Denver", "Helsinki", "Buenos Aires", "Kyoto"),
)  # fmt: skip
PEOPLE = (
    ("Anna", "Peter", "Maria", "John", "Sofia", "David", "Emma", "Lukas", "Nina", "Omar", "Grace", "Tom", "Mum", "Dad",
     "Sarah", "Ahmed", "Julia", "Ben", "Clara", "Victor", "my brother", "the office"),
    ("Laura", "Daniel", "Alice", "Martin", "Olga", "Simon", "Ruth", "Ivan", "my sister", "Helen"),
)  # fmt: skip
SWEEPS = (
    ("attention", "quickstart", "small-heads", "wide", "rates", "optimizers", "night-run", "metric", "lora", "depth"),
    ("context", "first-try", "long-warmup", "decay", "plays"),
)
TEXTS = (
    ("I will be {n} minutes late", "dinner is at {h}", "the train leaves at {h}", "I am on my way", "call me back",
     "please buy milk and {n} eggs", "happy birthday", "the meeting moved to {h}", "I have arrived safely",
     "do not wait for me", "the keys are under the mat", "we need {n} more chairs", "thank you for the flowers",
     "see you at {h}", "the car is ready", "I cannot come today"),
    ("I need {n} more minutes", "lunch is at {h}", "the parcel is here", "good luck for tomorrow",
     "please feed the cat", "the film starts at {h}", "I found your glasses", "bring {n} bottles of water"),
)  # fmt: skip

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Return the words of a number below 100."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def number(rng: random.Random, least: int, most: int) -> Said:
    """Return a number, in digits or in words."""
    value = rng.randint(least, most)
    return Said(value, in_words(value) if value < 100 and rng.random() < 0.5 else str(value))


def operands(rng: random.Random, split: Split) -> dict[str, Said]:
    most = rng.choice((20, 99, 99, 999))
    return {"a": number(rng, 2, most), "b": number(rng, 2, most)}


def chosen(name: str, pools: tuple[tuple[str, ...], ...], rng: random.Random, split: Split) -> dict[str, Said]:
    value = rng.choice(pools[split])
    return {name: Said(value, value)}


def message(rng: random.Random, split: Split) -> dict[str, Said]:
    text = rng.choice(TEXTS[split]).format(n=rng.randint(2, 40), h=f"{rng.randint(1, 12)} o'clock")
    return chosen("to", PEOPLE, rng, split) | {"text": Said(text, text)}


def clock(rng: random.Random, _: dict[str, Any]) -> tuple[str, str]:
    time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    return time, f"It is {time}."


def sky(rng: random.Random, given: dict[str, Any]) -> tuple[str, str]:
    degrees, what = rng.randint(-5, 35), rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))
    return f"{what}, {degrees} degrees", f"It is {what} in {given['city']}, with {degrees} degrees."


def best(rng: random.Random, given: dict[str, Any]) -> tuple[str, str]:
    trial, loss = rng.randint(0, 60), f"{rng.uniform(1, 3):.3f}"
    return f"trial {trial}, loss {loss}", f"Trial {trial} was the best of {given['sweep']}, with a loss of {loss}."


SKILLS = (
    Skill(
        "current_time", "Tell the time.", {}, lambda rng, split: {},
        (("What time is it?", "What's the time?", "Can you tell me the time?", "Tell me the time, please.",
          "Do you know what time it is?", "What time is it now?", "What does the clock say?", "Time, please.",
          "Could you check the clock for me?", "I need to know the time."),
         ("Have you got the time?", "What time do we have now?", "What is the hour right now?",
          "Please say what time it is now.", "I forgot my watch, what time is it?")),
        clock,
    ),
    Skill(
        "set_timer", "Start a timer.", {"minutes": {"type": "integer"}},
        lambda rng, split: {"minutes": number(rng, 2, 90)},
        (("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.", "Timer, {minutes} minutes.",
          "Please set the timer to {minutes} minutes.", "Wake me in {minutes} minutes.",
          "Can you start a timer for {minutes} minutes?", "Remind me in {minutes} minutes.",
          "I need a timer of {minutes} minutes.", "The eggs need {minutes} minutes, start a timer.",
          "Count down {minutes} minutes.", "Let me know when {minutes} minutes have passed."),
         ("Could you set {minutes} minutes on the timer?", "Give me a timer for {minutes} minutes, please.",
          "Tell me when {minutes} minutes are over.", "Put {minutes} minutes on the clock.",
          "The tea must steep, {minutes} minutes on the timer please.")),
        lambda rng, given: ("started", f"The timer runs for {given['minutes']} minutes."),
    ),
    Skill(
        "multiply", "Multiply two numbers.", {"a": {"type": "integer"}, "b": {"type": "integer"}}, operands,
        (("What is {a} times {b}?", "Multiply {a} by {b}.", "How much is {a} times {b}?", "{a} times {b}, please.",
          "Calculate {a} x {b}.", "What do you get when you multiply {a} and {b}?", "{a} * {b}?",
          "Tell me the product of {a} and {b}.", "I need {a} multiplied by {b}.", "Can you work out {a} times {b}?"),
         ("Please compute {a} times {b}.", "What's {a} multiplied by {b}?", "Find the product of {a} and {b}.",
          "Could you multiply {a} with {b}?", "{a} multiplied by {b} is what?")),
        lambda rng, given: (f"{given['a'] * given['b']}", f"That is {given['a'] * given['b']}."),
    ),
    Skill(
        "add", "Add two numbers.", {"a": {"type": "integer"}, "b": {"type": "integer"}}, operands,
        (("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?", "{a} plus {b}, please.",
          "Calculate {a} + {b}.", "What do you get when you add {a} and {b}?", "{a} + {b}?",
          "Tell me the sum of {a} and {b}.", "I need {a} and {b} added together.", "Can you work out {a} plus {b}?"),
         ("Please compute {a} plus {b}.", "What's {a} and {b} together?", "Find the sum of {a} and {b}.",
          "Could you add {a} to {b}?", "I paid {a} and then {b}, how much in total?")),
        lambda rng, given: (f"{given['a'] + given['b']}", f"That is {given['a'] + given['b']}."),
    ),
    Skill(
        "weather", "Tell the weather in a city.", {"city": {"type": "string"}}, partial(chosen, "city", CITIES),
        (("What's the weather in {city}?", "How is the weather in {city}?", "Is it raining in {city}?",
          "Tell me the weather for {city}.", "What is the temperature in {city}?", "Is it cold in {city} today?",
          "Weather in {city}, please.", "I am flying to {city}, what is the weather like there?",
          "Do I need a coat in {city}?", "Check the weather in {city}."),
         ("How warm is it in {city}?", "Is the sun shining in {city}?", "Will I need an umbrella in {city}?",
          "What is it like outside in {city}?", "Give me the weather report for {city}.")),
        sky,
    ),
    Skill(
        "send_message", "Send a text message.", {"to": {"type": "string"}, "text": {"type": "string"}}, message,
        (("Tell {to}: {text}.", "Send a message to {to}: {text}.", "Write to {to}: {text}.", "Text {to}: {text}.",
          "Please send {to} this message: {text}.", "Send {to} a text that says: {text}.",
          'Message {to} "{text}".', 'Write "{text}" to {to}.', "Can you text {to}: {text}?",
          "I want to write to {to}: {text}."),
         ("Let {to} know: {text}.", "Could you message {to}: {text}?", 'Send "{text}" to {to}.',
          "Please write {to} a message: {text}.", "A text for {to}: {text}.")),
        lambda rng, given: ("sent", f"The message to {given['to']} is sent."),
    ),
    Skill(
        "set_volume", "Set the volume of the loudspeaker.", {"percent": {"type": "integer"}},
        lambda rng, split: {"percent": number(rng, 0, 100)},
        (("Set the volume to {percent} percent.", "Volume {percent}.", "Turn the volume to {percent}.",
          "Change the volume to {percent} percent, please.", "Make it {percent} percent loud.",
          "Put the loudspeaker at {percent} percent.", "I want the volume at {percent}.",
          "Can you set the sound to {percent} percent?", "Volume to {percent} percent.",
          "Bring the volume to {percent} percent."),
         ("Please turn the loudspeaker to {percent} percent.", "Adjust the volume to {percent}.",
          "The music should play at {percent} percent.", "Could you put the volume at {percent} percent?",
          "Sound level {percent} percent, please.")),
        lambda rng, given: ("set", f"The volume is at {given['percent']} percent."),
    ),
    Skill(
        "best_trial", "Find the best trial of a sweep.", {"sweep": {"type": "string"}},
        partial(chosen, "sweep", SWEEPS),
        (("Which trial of {sweep} was best?", "What was the best trial of the sweep {sweep}?",
          "Show me the best trial of {sweep}.", "Who won in the sweep {sweep}?",
          "Find the best run in {sweep}.", "What did the sweep {sweep} find?", "Best trial of {sweep}, please.",
          "How good did {sweep} get?", "Which trial had the lowest loss in {sweep}?",
          "Tell me the winner of the {sweep} sweep."),
         ("Which run won the sweep {sweep}?", "What is the top trial in {sweep}?", "Give me the winner of {sweep}.",
          "Which trial came out first in the {sweep} sweep?", "What is the lowest loss that {sweep} reached?")),
        best,
    ),
)  # fmt: skip

TALK = (
    (
        ("Hello!", "Hello, what can I do for you?"), ("Good morning.", "Good morning!"),
        ("Thank you.", "You are welcome."), ("How are you?", "I am fine, thank you."),
        ("Who are you?", "I am your assistant."), ("That is great.", "I am glad to hear that."),
        ("I am tired.", "Then take a short rest."), ("Good night.", "Sleep well!"),
        ("Tell me a joke.", "Why do cows wear bells? Their horns do not work."), ("You are funny.", "Thank you!"),
        ("What is the capital of France?", "It is Paris."), ("Do you like music?", "I like to hear about it."),
        ("I am bored.", "Go for a walk, or read a book."), ("Never mind.", "All right."),
        ("What is a timer?", "It counts time and then rings."), ("What does a cat eat?", "Mostly meat and fish."),
        ("What colour is the sky?", "It is blue."),
    ),
    (
        ("Hi there!", "Hello, what can I do for you?"), ("Thanks a lot!", "You are welcome."),
        ("What is the capital of Italy?", "It is Rome."), ("What is your name?", "I am your assistant."),
        ("I am hungry.", "Then have a snack."), ("Good evening.", "Good evening!"), ("Forget it.", "All right."),
        ("What do birds eat?", "Mostly seeds and insects."), ("I had a long day.", "Then take a short rest."),
    ),
)  # fmt: skip
"""Sentences that need no tool, and answers."""

CANNOT = "I cannot do that here."
"""The answer to a request whose tool is not offered."""

JOINED = (" And ", " Also, ", " Then ")


@dataclass(frozen=True)
class Request:
    """A sentence of the user, the calls that it needs, and what follows."""

    sentence: str
    calls: list[tuple[str, dict[str, Any]]]
    results: list[str]
    reply: str


def request(rng: random.Random, split: Split, skill: Skill) -> Request:
    drawn = skill.draw(rng, split)
    given = {name: said.value for name, said in drawn.items()}
    sentence = rng.choice(skill.sentences[split]).format(**{name: said.words for name, said in drawn.items()})
    if rng.random() < 0.3:  # a transcript may have no capitals and no marks at the end
        sentence = sentence.rstrip(".?")
    result, reply = skill.answer(rng, given)
    return Request(sentence[0].upper() + sentence[1:], [(skill.name, given)], [result], reply)


def conversation(rng: random.Random, split: Split, exchanges: int = 3, most_tools: int = 4) -> dict[str, Any]:
    """Return a conversation: mostly requests that need a call, some that need two or none, and some that the tools
    offered cannot answer."""
    offered = rng.sample(SKILLS, rng.randint(2, most_tools))
    missing = [skill for skill in SKILLS if skill not in offered]
    messages: list[dict[str, Any]] = []
    for _ in range(exchanges):
        kind = rng.random()
        if kind < 0.15:
            sentence, reply = rng.choice(TALK[split])
            asked = Request(sentence, [], [], reply)
        elif kind < 0.22:
            asked = Request(request(rng, split, rng.choice(missing)).sentence, [], [], CANNOT)
        elif kind < 0.32:
            first, second = (request(rng, split, skill) for skill in rng.sample(offered, 2))
            asked = Request(
                f"{first.sentence}{rng.choice(JOINED)}{second.sentence[0].lower()}{second.sentence[1:]}",
                first.calls + second.calls,
                first.results + second.results,
                f"{first.reply} {second.reply}",
            )
        else:
            asked = request(rng, split, rng.choice(offered))
        messages += exchange(asked, len(messages))
    return {"tools": [skill.tool() for skill in offered], "messages": messages}


def exchange(asked: Request, place: int) -> list[dict[str, Any]]:
    """Return the messages of a request, as in OpenAI's API."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked.sentence}]
    if asked.calls:
        ids = [f"call_{place + number}" for number in range(len(asked.calls))]
        calls = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for id, (name, given) in zip(ids, asked.calls, strict=True)
        ]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages += [
            {"role": "tool", "tool_call_id": id, "content": result}
            for id, result in zip(ids, asked.results, strict=True)
        ]
    return [*messages, {"role": "assistant", "content": asked.reply}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="for train.jsonl and held-out.jsonl")
    parser.add_argument("--conversations", type=int, default=1500, help="of three exchanges each, to train on")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate((("train", arguments.conversations), ("held-out", arguments.held_out))):
        rng = random.Random(f"{arguments.seed} {name}")
        lines = [json.dumps(conversation(rng, split)) + "\n" for _ in range(count)]
        (arguments.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
