"""A model's folder with names of weights that vLLM reads.

transformers 5 writes the towers of LLaVA's families as ``vision_tower.…``; vLLM 0.32 looks for those of CLIP and SigLIP
under ``vision_tower.vision_model.…``, as older checkpoints have them (vllm/model_executor/models/llava.py, clip.py).
Names stand in the head of a safetensors file alone, so the numbers behind it are copied as they are, never read.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
INDEX = "model.safetensors.index.json"
HEAD = 8  # bytes that say how long a file's head is
CHUNK = 1 << 24  # bytes copied at once
WEIGHTS, BESIDE = ".safetensors", (".json", ".jinja", ".txt", ".model")  # what of a folder is copied


def readable(name: str) -> str:
    """The name under which vLLM reads a weight of LLaVA's families."""
    return TOWER.sub(r"\1vision_model.", name)


def is_readable(folder: Path) -> bool:
    """Whether vLLM reads all weights of a folder as they are named."""
    names = [name for path in folder.glob(f"*{WEIGHTS}") for name in _head(path)[0] if name != "__metadata__"]
    return all(readable(name) == name for name in names)


def write_readable(source: Path, target: Path) -> None:
    """Copy a model's folder, weights under names that vLLM reads; nothing of it is there before all of it is.

    Args:
        source: with safetensors.
        target: is replaced.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix == WEIGHTS:
            _copy_renamed(path, part / path.name)
        elif path.name == INDEX:
            index = json.loads(path.read_text(encoding="utf-8"))
            index["weight_map"] = {readable(name): shard for name, shard in index["weight_map"].items()}
            (part / path.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        elif path.is_file() and path.suffix in BESIDE:
            shutil.copyfile(path, part / path.name)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """What a file holds by name, and where its numbers begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEAD), "little")
        return json.loads(file.read(length)), HEAD + length


def _copy_renamed(source: Path, target: Path) -> None:
    head, start = _head(source)
    text = json.dumps({readable(name): value for name, value in head.items()}).encode()
    text += b" " * (-len(text) % HEAD)  # numbers begin at a multiple
    with source.open("rb") as numbers, target.open("wb") as file:
        numbers.seek(start)
        file.write(len(text).to_bytes(HEAD, "little") + text)
        shutil.copyfileobj(numbers, file, CHUNK)
