"""What Prometheus reads at `/metrics`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from btcbot import __version__
from btcbot.terminal.contract import FUNCTIONS

CALL_BUCKETS: Final = (1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Read(Collector):
    """Values that are kept elsewhere and read when somebody asks."""

    def __init__(self, read: Callable[[], Iterable[Metric]]):
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Return the present values."""
        return self._read()


class ServerMetrics:
    """Every metric of one server."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        Gauge("btcbot_server_info", "Version of the server.", ["version"], registry=own).labels(__version__).set(1)
        calls = Histogram(
            "btcbot_server_call_seconds",
            "Time the terminal took for a call, by function.",
            ["function"],
            registry=own,
            buckets=CALL_BUCKETS,
        )
        self._calls = {name: calls.labels(name) for name in FUNCTIONS}
        self._errors = Counter(
            "btcbot_server_call_errors_total", "Calls that ended with an error, by function and code.", ["function", "code"], registry=own
        )
        self._requests = Counter("btcbot_server_requests_total", "Requests, by route and status.", ["route", "status"], registry=own)
        self._request_time = Histogram(
            "btcbot_server_request_seconds", "Time from a request's arrival to its answer's first byte.", registry=own, buckets=CALL_BUCKETS
        )
        self.background_failures = Counter(
            "btcbot_server_background_failures_total", "Failures of what the server does every second.", registry=own
        )
        self.streams_dropped = Counter(
            "btcbot_server_streams_dropped_total", "Streams that ended because their client was too slow.", registry=own
        )

    def observe_call(self, name: str, seconds: float, code: int) -> None:
        """Count one call of the terminal."""
        self._calls[name].observe(seconds)
        if code != 1:
            self._errors.labels(name, str(code)).inc()

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, str(status)).inc()
        self._request_time.observe(seconds)

    def gauges(self, read: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """Also show what `read` returns: name, text and value."""

        def collect() -> Iterable[Metric]:
            for name, (text, value) in read().items():
                yield GaugeMetricFamily(name, text, value=value)

        self.registry.register(_Read(collect))

    def counters(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Also show what `read` returns: counters named as Prometheus writes them, such as `name_total{outcome="done"}`."""

        def collect() -> Iterable[Metric]:
            families: dict[str, CounterMetricFamily] = {}
            for key, value in read().items():
                name, _, labels = key.partition("{")
                pairs = [pair.partition("=") for pair in labels.rstrip("}").split(",") if pair]
                names = [left.strip() for left, _, _ in pairs]
                family = families.setdefault(name, CounterMetricFamily(name, "Counted by the server.", labels=names))
                family.add_metric([right.strip('"') for _, _, right in pairs], value)
            return families.values()

        self.registry.register(_Read(collect))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
