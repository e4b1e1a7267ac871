"""Words that a config chooses among, and the name of its file."""

from typing import Literal

Measure = Literal["retention", "flops", "kv", "latency_ms"]
Positions = Literal["compact", "original"]
Sinks = Literal["kept", "masked", "calibrated"]

FILE_NAME = "pruning.json"
ENGINE_FILE = "{}.json"  # what a target of export is told, beside it
