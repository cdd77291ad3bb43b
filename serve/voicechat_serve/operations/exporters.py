"""The metrics of the whole cluster on one page: this service's part of all of Ray's exporters, merged.

Every node of Ray has an exporter, which answers with several hundred kilobytes about Ray itself. This module reads each
one and selects the metrics of this service: those of metrics.py under their own names (Ray adds `ray_` to them), and
those of Serve about the steps before and around our code, under Ray's names.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import httpx
import ray
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from voicechat_serve.names import APPLICATIONS

log = logging.getLogger("ray.serve.voicechat.exporters")

EXPORTER_TIMEOUT_S = 5

OURS = "ray_voicechat_"

SERVES = (
    "ray_serve_num_http_requests",
    "ray_serve_num_http_error_requests",
    "ray_serve_num_ongoing_http_requests",
    "ray_serve_deployment_queued_queries",
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_replica_starts",
    "ray_serve_health_check_failures",
)
"""The beginnings of names. Requests that Serve's proxy refuses itself never reach the API's own counts."""

CONSTANT_LABELS = {"Component", "SessionName", "Version"}
"""Labels that are the same on every series; and all that begin with otel_ (from Ray's exporting library)."""


@dataclass
class Exposition:
    """The interface of `generate_latest`."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


async def cluster_metrics() -> bytes:
    """Return Prometheus' text format. A node without an answer is omitted, logged and counted."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]
    async with httpx.AsyncClient(timeout=EXPORTER_TIMEOUT_S, trust_env=False) as client:
        answers = await asyncio.gather(*(exported(client, address) for address in addresses))
    texts = [answer for answer in answers if answer is not None]
    return await asyncio.to_thread(merged, texts, len(answers) - len(texts))


async def exported(client: httpx.AsyncClient, address: str) -> str | None:
    try:
        response = await client.get(address)
        response.raise_for_status()
    except httpx.HTTPError as error:
        log.warning("no metrics from %s: %r", address, error)
        return None
    return response.text


def merged(expositions: Iterable[str], silent: int = 0) -> bytes:
    """Merge the service's part of several expositions into one, with each family once, as the format requires."""
    families: dict[str, Metric] = {}
    for exposition in expositions:
        for family in text_string_to_metric_families("\n".join(relevant(exposition))):
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                if sample.labels.get("application") not in (None, "", *APPLICATIONS):
                    continue  # of another application on the same Serve
                labels = {
                    name: value
                    for name, value in sample.labels.items()
                    if name not in CONSTANT_LABELS and not name.startswith("otel_")
                }
                kept.add_sample(sample.name, labels, sample.value)
    families["silent"] = Metric("voicechat_exporters_silent", "Nodes of Ray whose exporter did not answer.", "gauge")
    families["silent"].add_sample("voicechat_exporters_silent", {}, silent)
    return generate_latest(Exposition(families.values()))


def relevant(exposition: str) -> Iterable[str]:
    """Yield the lines about this service, with our names. Ray's own are ten times as many, and need no parsing."""
    for line in exposition.splitlines():
        name = line.split(maxsplit=3)[2] if line.startswith(("# HELP ", "# TYPE ")) else line
        if name.startswith(OURS):
            yield line.replace(OURS, OURS.removeprefix("ray_"), 1)
        elif name.startswith(SERVES):
            yield line
