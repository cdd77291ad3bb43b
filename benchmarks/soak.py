"""Twice as many requests as the service can answer, for minutes: each gets an answer or a clean 429 or 503, nothing is
lost, nothing crashes, and memory stays flat once warm.

    python benchmarks/soak.py [--seconds 300]
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
from api_overhead import save_model, served
from reporting import bar, floor, report

ANSWER = 64
WARM_SHARE = 0.2
"""Of the time, after which memory must not grow any more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        save_model(Path(path), "6x384")
        with served(Path(path)) as url:
            facts = asyncio.run(soak(url, arguments.seconds))
    growth = facts["MiB at the end"] / facts["MiB when warm"]
    report(
        "soak",
        [facts],
        [
            bar("lost requests", facts["lost"], 0),
            bar("requests refused in another way than 429 or 503", facts["other"], 0),
            bar("memory at the end / when warm", growth, 1.05),
            floor("requests / what can be answered", facts["offered / capacity"], 1.8),
        ],
    )


async def soak(url: str, seconds: float) -> dict[str, float]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        capacity = await closed_loop(client, url, seconds=10)
        print(f"capacity {capacity:.1f} requests/s; now {2 * capacity:.1f} for {seconds:g} s", flush=True)
        outcomes: Counter[str] = Counter()
        memory: list[tuple[float, float]] = []
        watching = asyncio.create_task(watch_memory(memory))
        tasks, began, clock = set(), time.monotonic(), random.Random(0)
        due = began
        while time.monotonic() - began < seconds:
            due += clock.expovariate(2 * capacity)  # at random moments, whatever the service does
            await asyncio.sleep(max(0, due - time.monotonic()))
            task = asyncio.create_task(ask(client, url, outcomes, stream=clock.random() < 0.5))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        took = time.monotonic() - began
        await asyncio.gather(*tasks)
        watching.cancel()
    warm = [mebibytes for at, mebibytes in memory if at - began > WARM_SHARE * seconds]
    asked = outcomes.total()
    return {
        "asked": asked,
        "answered": outcomes["answered"],
        "429 or 503": outcomes["refused"],
        "other": outcomes["other"],
        "lost": outcomes["lost"],
        "offered / capacity": round(asked / took / capacity, 2),
        "MiB when warm": round(warm[0]),
        "MiB at the end": round(warm[-1]),
        "MiB at most": round(max(warm)),
    }


async def closed_loop(client: httpx.AsyncClient, url: str, seconds: float) -> float:
    """Requests a second that 48 clients get answered."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def ask_on() -> None:
        while time.monotonic() < end:
            await ask(client, url, outcomes, stream=True)

    await asyncio.gather(*(ask_on() for _ in range(48)))
    return outcomes["answered"] / seconds


async def ask(client: httpx.AsyncClient, url: str, outcomes: Counter, stream: bool) -> None:
    body = {"model": "model", "prompt": "to be, or not to be", "max_tokens": ANSWER, "stream": stream}
    try:
        response = await client.post(url, json=body)
    except httpx.HTTPError:
        outcomes["lost"] += 1
        return
    if response.status_code in (429, 503):
        clean = "retry-after" in response.headers and "error" in response.json()
        outcomes["refused" if clean else "other"] += 1
    elif response.status_code == 200:
        whole = response.text.endswith("data: [DONE]\n\n") if stream else response.json()["choices"][0]["finish_reason"]
        outcomes["answered" if whole else "lost"] += 1
    else:
        outcomes["other"] += 1


async def watch_memory(memory: list[tuple[float, float]]) -> None:
    """(when, MiB) of all of the service's processes."""
    while True:
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        memory.append((time.monotonic(), total / 2**20))
        await asyncio.sleep(2)


if __name__ == "__main__":
    main()
