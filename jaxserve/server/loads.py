"""How loaded the server is, for routers: /v1/loads, and /get_load as it was before."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from jaxserve.config import GIB
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, parse_query
from jaxserve.server.state import STATE, VERSION

SECTIONS = ("core", "memory", "spec", "lora", "disagg", "queues", "all")
_SECTION = f"({'|'.join(SECTIONS)})"


class LoadsQuery(BaseModel):
    """/v1/loads?…"""

    dp_rank: int = Field(0, ge=0, description="The load of a rank; there is only 0.")
    include: str = Field(
        "all",
        pattern=rf"^{_SECTION}(,{_SECTION})*$",
        description=f"Comma-separated sections: {', '.join(SECTIONS)}.",
    )
    format: Literal["json", "prometheus"] = "json"


async def loads(request: web.Request) -> web.Response:
    """GET /v1/loads?dp_rank=&include=&format=."""
    query = parse_query(LoadsQuery, request)
    llm = request.app[STATE].llm
    stats = llm.stats()
    entries = [] if query.dp_rank else [_load(stats, set(query.include.split(",")))]
    if query.format == "prometheus":
        return web.Response(
            body=_as_text(entries), headers={"Content-Type": Metrics.content_type}
        )  # fmt: skip
    return json_response(
        {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": VERSION,
            "accelerator": stats.device_name,
            "num_accelerators": llm.config.tp_size,
            "loads": entries,
        }
    )


async def get_load(request: web.Request) -> web.Response:
    """GET /get_load, as sglang-router asks for it."""
    stats = request.app[STATE].llm.stats()
    return json_response(
        [
            {
                "dp_rank": 0,
                "num_reqs": stats.num_running + stats.num_waiting,
                "num_waiting_reqs": stats.num_waiting,
                "num_tokens": stats.num_used_tokens + stats.num_waiting_tokens,
            }
        ]
    )


def _load(stats: EngineStats, sections: set[str]) -> JsonObject:
    load: JsonObject = {
        "timestamp": time.time(),
        "dp_rank": 0,
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": stats.num_waiting,
        "num_waiting_uncached_tokens": stats.num_waiting_tokens,
        "num_used_tokens": stats.num_used_tokens,
        "num_total_tokens": stats.num_used_tokens + stats.num_waiting_tokens,
        "num_active_tokens": stats.sum_seq_lens,
        "max_total_num_tokens": stats.max_total_num_tokens,
        "max_running_requests": stats.max_running,
        "token_usage": round(stats.token_usage, 4),
        "gen_throughput": round(stats.gen_throughput, 2),
        "cache_hit_rate": round(stats.cache_hit_rate, 4),
        "utilization": round(stats.utilization, 4),
        "total_prefill_tokens": stats.num_prefill_tokens_total,
        "total_prefill_cached_tokens": stats.num_cached_tokens_total,
    }
    optional: dict[str, tuple[str, JsonObject | None]] = {
        "memory": ("memory", _memory(stats)),
        "spec": ("speculative", None),
        "lora": ("lora", None),
        "disagg": ("disaggregation", None),
        "queues": ("queues", _queues(stats)),
    }
    chosen = sections if "all" not in sections else optional.keys()
    return load | dict(optional[name] for name in optional if name in chosen)


def _memory(stats: EngineStats) -> JsonObject:
    return {
        "weight_gb": round(stats.weight_bytes / GIB, 3),
        "kv_cache_gb": round(stats.kv_cache_bytes / GIB, 3),
        "graph_gb": 0.0,
        "token_capacity": stats.max_total_num_tokens,
    }


def _queues(stats: EngineStats) -> JsonObject:
    return {
        "waiting": stats.num_waiting,
        "grammar": stats.num_grammar_queue,
        "paused": stats.num_paused,
        "retracted": stats.num_retracted,
        "prealloc_ready": 0,
    }


class _Gauges(Collector):
    """Every number of a load, once."""

    def __init__(self, entries: list[JsonObject]) -> None:
        self._entries = entries

    def collect(self) -> Iterator[Metric]:
        for entry in self._entries:
            flat = dict(entry)
            for section in ("memory", "queues"):
                values = flat.pop(section, None)
                if isinstance(values, dict):
                    flat |= {f"{section}_{name}": value for name, value in values.items()}
            rank = str(flat.pop("dp_rank"))
            for name, value in flat.items():
                if isinstance(value, int | float):
                    family = GaugeMetricFamily(f"sglang:{name}", name, labels=("dp_rank",))
                    family.add_metric((rank,), float(value))
                    yield family


def _as_text(entries: list[JsonObject]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Gauges(entries))
    return generate_latest(registry)
