"""Run a load test with progress, and report each level: numbers for JSON, and a table for people."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from voicechat_ui.load_test.levels import Level, run_levels
from voicechat_ui.load_test.targets import EndpointName, Sample

PERCENTILES = (50, 90, 99)


def summary(level: Level) -> dict[str, Any]:
    """Return all figures of one level. Times are in seconds; percentiles without values are None.

    Times of an open loop start when a request was due. Times and throughput count only complete answers.
    """
    done = [sample for sample in level.samples if sample.outcome == "done"]
    outcomes = Counter(sample.outcome for sample in level.samples)
    ended = max((sample.ended for sample in level.samples), default=level.began)
    elapsed = ended - level.began
    tokens = sum(sample.completion_tokens for sample in done)
    audio = sum(sample.audio_seconds for sample in done)
    written = [sample for sample in done if sample.completion_tokens > 1 and sample.first and sample.last]
    return {
        "streams": level.streams,
        "rate": level.rate,
        "requests": len(level.samples),
        "done": outcomes["done"],
        "refused": outcomes["refused"],
        "failed": outcomes["failed"],
        "lost": outcomes["lost"],
        "unfinished": level.under_way,
        "statuses": dict(sorted(Counter(str(sample.status or "none") for sample in level.samples).items())),
        "refusals": sum(sample.refusals for sample in level.samples),
        "refusals_without_retry_after": sum(sample.refusals_without_retry_after for sample in level.samples),
        "retried": level.retry,
        "errors": dict(Counter(sample.error for sample in level.samples if sample.error).most_common(5)),
        "seconds": elapsed,
        "requests_per_second": outcomes["done"] / elapsed if elapsed else None,
        "prompt_tokens": sum(sample.prompt_tokens for sample in done),
        "completion_tokens": tokens,
        "tokens_per_second": tokens / elapsed if elapsed and tokens else None,
        "audio_seconds": audio,
        "audio_seconds_per_second": audio / elapsed if elapsed and audio else None,
        "time_to_first_seconds": percentiles([sample.first - sample.due for sample in done if sample.first]),
        "inter_token_seconds": percentiles([inter_token(sample) for sample in written]),
        "longest_pause_seconds": percentiles([sample.longest_pause for sample in done if sample.longest_pause]),
        "total_seconds": percentiles([sample.ended - sample.due for sample in done]),
        "tokens_per_second_of_a_stream": percentiles(
            [sample.completion_tokens / (sample.ended - sample.due) for sample in written]
        ),
        "sent_late_seconds": percentiles([sample.sent - sample.due for sample in level.samples])
        if level.rate
        else None,
    }


def inter_token(sample: Sample) -> float:
    """Return the seconds per token after the first. A message may have several tokens, so the usage counts them."""
    assert sample.first is not None
    assert sample.last is not None
    return (sample.last - sample.first) / (sample.completion_tokens - 1)


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    return {f"p{percentile}": float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}


def run_load_test(
    levels: Sequence[Level], endpoint: EndpointName, url: str, key: str, console: Console, **wanted: Any
) -> tuple[list[dict[str, Any]], bool]:
    """Run the levels with progress on the console.

    Args:
        levels: the requests to send.
        console: for the progress.
        endpoint, url, key, wanted: the same as for `run_levels`.

    Returns:
        A summary of each level that has started, and whether Ctrl-C ended the test early.

    Raises:
        InputError: there is no server or no such model, or the server refuses the key.
    """
    interrupted = False
    with console.status("connecting to the server") as status:

        def show(level: Level) -> None:
            outcomes = Counter(sample.outcome for sample in level.samples)
            ended = ", ".join(f"{amount} {outcome}" for outcome, amount in outcomes.items())
            status.update(
                f"{level_name(level.streams, level.rate)}: {level.under_way} running, {ended or 'none ended'}"
            )

        try:
            asyncio.run(run_levels(levels, endpoint, url, key, show, **wanted))
        except KeyboardInterrupt:
            interrupted = True
    return [summary(level) for level in levels if level.began], interrupted


def level_name(streams: int | None, rate: float | None) -> str:
    return f"{rate:g} requests/s" if rate else "1 stream" if streams == 1 else f"{streams} streams"


def table(title: str, summaries: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a column for each level and a row for each measure that at least one level has."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("")
    for level in summaries:
        shown.add_column(level_name(level["streams"], level["rate"]), justify="right", no_wrap=True)
    first = "token" if any(level["completion_tokens"] for level in summaries) else "byte"
    times = {
        f"time to first {first}, ms": "time_to_first_seconds",
        "between tokens, ms": "inter_token_seconds",
        "longest pause, ms": "longest_pause_seconds",
        "whole answer, ms": "total_seconds",
        "sent late, ms": "sent_late_seconds",
    }
    for label, key in times.items():
        for percentile in [f"p{percentile}" for percentile in PERCENTILES]:
            cells = [number(level[key] and level[key][percentile] * 1000) for level in summaries]
            if any(cells):
                shown.add_row(label, percentile, *cells, end_section=percentile == f"p{PERCENTILES[-1]}")
                label = ""
    amounts = {
        "tokens/s": "tokens_per_second",
        "seconds of sound/s": "audio_seconds_per_second",
        "requests/s": "requests_per_second",
        "prompt tokens": "prompt_tokens",
        "completion tokens": "completion_tokens",
        "done": "done",
        "refused (429, 503)": "refused",
        "refusals, with retries": "refusals",
        "- without Retry-After": "refusals_without_retry_after",
        "failed": "failed",
        "lost": "lost",
        "unfinished": "unfinished",
    }
    for label, key in amounts.items():
        if any(level[key] for level in summaries) or key in ("refused", "failed", "lost"):
            shown.add_row(label, "", *(number(level[key]) for level in summaries))
        if key == "tokens_per_second" and first == "token":
            speeds = [level["tokens_per_second_of_a_stream"] for level in summaries]
            shown.add_row("- of a stream", "p50", *(number(speed and speed["p50"]) for speed in speeds))
    statuses = (", ".join(f"{status}: {times}" for status, times in level["statuses"].items()) for level in summaries)
    shown.add_row("statuses", "", *statuses)
    return shown


def number(value: float | None) -> str:
    """Return a number with at least three digits; counts unchanged."""
    if value is None:
        return ""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:.3g}"
