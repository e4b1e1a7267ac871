"""What is installed with the library alone, and with the command line."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "lmms_eval": "lmms-eval",
    "grpc": "grpcio",
    "prometheus_client": "prometheus-client",
}
BROUGHT = {
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "tqdm": "transformers",
    "yaml": "transformers",
    "omegaconf": "hydra-core",
    "sqlalchemy": "mlflow",
}


def named(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", each)[0] for each in requirements}


def imported(package: str) -> dict[str, str]:
    """Distributions that a package's files import, and a file that does."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                found[(DISTRIBUTIONS | BROUGHT).get(name, name)] = str(path.relative_to(ROOT))
    ours = {"multimodal", "search", "pipelines", "vllm"}  # vllm itself imports the plugin that imports it
    return {name: path for name, path in found.items() if name not in ours}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("multimodal", ["dino", "lmms-eval", "dev"]),
        ("search", ["search", "postgres"]),
        ("pipelines", ["search", "serve", "slurm", "ray"]),
    ],
)
def test_what_a_package_imports_is_installed_with_it(package, extras):
    there = named(PROJECT["dependencies"]).union(*(named(PROJECT["optional-dependencies"][each]) for each in extras))
    missing = {name: path for name, path in imported(package).items() if name not in there}
    assert not missing


def test_the_command_says_what_it_lacks():
    program = "import sys; sys.modules['hydra'] = None; import pipelines.__main__"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stderr.startswith("error: ") and "pip install 'flowprune[search]'" in run.stderr
