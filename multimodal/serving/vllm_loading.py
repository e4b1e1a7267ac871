"""Load a model in vLLM, every weight of it, and say with what; run by a Python that has vLLM and perhaps nothing else.

``python -c "$(cat vllm_loading.py)" MODEL OVERRIDES``: those of its config, as JSON, which flowprune's plugin needs.
"""

import json
import os
import sys
from importlib.metadata import entry_points

LONGEST = 4096  # positions, so that a cache of a gigabyte is enough


def main() -> None:
    """Entry point."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that what is wrong is said here
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from transformers import AutoConfig
    from vllm import LLM, __version__

    model, overrides = sys.argv[1], json.loads(sys.argv[2])
    plugin = any(each.name == "flowprune" for each in entry_points(group="vllm.general_plugins"))
    positions = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    options = {"enforce_eager": True, "max_num_seqs": 1, "skip_mm_profiling": True}
    options |= {"hf_overrides": overrides} if plugin and overrides else {}
    LLM(model, max_model_len=min(positions, LONGEST), **options)
    print(json.dumps({"vllm": __version__, "plugin": plugin}))


if __name__ == "__main__":
    main()
