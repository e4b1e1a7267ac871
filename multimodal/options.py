"""Words that a config chooses among."""

from typing import Literal

Measure = Literal["retention", "flops", "kv", "latency_ms"]
Positions = Literal["compact", "original"]
Sinks = Literal["kept", "masked", "calibrated"]
