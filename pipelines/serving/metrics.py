"""What ``/metrics`` shows, for Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The endpoint's counts and times, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("flowprune_requests", "Requests by HTTP status.", "status")
        self.visual = self._counter(
            "flowprune_visual_tokens", "Visual tokens of prompts: unpruned, and read by the first layer.", "which"
        )
        self.waiting = Gauge("flowprune_waiting", "Requests that wait.", registry=self.registry)
        self._seconds = Histogram(
            "flowprune_seconds",
            "Seconds of a part: queue, images, processor, tower (with projector), step, generate, upstream.",
            ["part"],
            buckets=BUCKETS,
            registry=self.registry,
        )

    def _counter(self, name: str, words: str, label: str) -> Counter:
        return Counter(name, words, [label], registry=self.registry)

    def took(self, part: str, seconds: float) -> None:
        """Observe how long a part took."""
        self._seconds.labels(part).observe(seconds)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Observe the seconds of a part that succeeds."""
        began = time.monotonic()
        yield
        self.took(part, time.monotonic() - began)

    def shown(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
