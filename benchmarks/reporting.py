"""How every benchmark ends: a table for people, then one line of JSON."""

import json
import os
from importlib.metadata import version
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from voicechat_platform.provenance import cpu_name


def bar(name: str, value: float, limit: float) -> dict[str, Any]:
    """A value that should be at most its bar."""
    return {"name": name, "value": round(value, 4), "bar": limit, "holds": value <= limit}


def floor(name: str, value: float, least: float) -> dict[str, Any]:
    """A value that should be at least its bar."""
    return {"name": name, "value": round(value, 4), "bar": least, "holds": value >= least}


def report(benchmark: str, results: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Print the results, a table of those that follow each other with the same keys, the bars, and the line of JSON."""
    console = Console(width=max(120, Console().width), highlight=False)
    for keys, rows in groupby(results, key=tuple):
        table = Table(*keys, title=benchmark)
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    for each in bars:
        console.print(f"{'holds' if each['holds'] else 'MISSED'}: {each['name']} {each['value']} (bar: {each['bar']})")
    versions = {name: version(name) for name in ("llm-voice-chat", "torch", "transformers")}
    facts = {"benchmark": benchmark, "machine": machine(), "versions": versions, "results": results, "bars": bars}
    print(json.dumps(facts))


def machine() -> dict[str, Any]:
    facts = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
