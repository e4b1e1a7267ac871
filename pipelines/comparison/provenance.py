"""How a comparison was made: enough to make it again."""

import os
import platform
from html import escape
from importlib.metadata import version

import torch

from multimodal.benchmark.device import device_name
from pipelines.comparison.contenders import methods_of
from pipelines.comparison.rows import Comparison
from pipelines.model import open_model
from pipelines.settings import Settings

PACKAGES = ("flowprune", "torch", "transformers", "optuna")


def how_it_was_made(settings: Settings, comparison: Comparison) -> str:
    """Command, rules, versions, hardware and seeds, as HTML."""
    device = open_model(settings.model).modules.text_model.device
    facts = {
        "Model": f"{settings.model.path}, {settings.model.dtype}, attention {settings.model.attention}",
        "Data": f"{settings.data.source}, {settings.data.calibration} calibration and {settings.data.heldout} held-out "
        f"samples, seed {settings.seed}; answers scored by {settings.data.score}",
        "Tuned": f"{settings.search.trials} trials each, sampler {settings.search.sampler}, least "
        f"{settings.search.objective} on the calibration samples, at most {settings.search.steps} steps"
        if settings.compare.tuned
        else "no: published defaults only",
        "Budget": f"{comparison.measure}, met to the last whole token by solving the last keep ratio; retention and KV "
        "bytes are what the runtime counted",
        "Hard subset": "samples that the model answers right unpruned, and wrong when the picture is downscaled to as "
        "many tokens as one step before the language model would keep",
        "Time": f"median of {settings.compare.repeats} on each of {settings.compare.timed} prompts, on "
        f"{device_name(device)}, {torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"noise: the unpruned model beside itself came out {comparison.noise:.2f}× as fast",
        "Versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        + f", Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"<pre>{escape(command(settings, comparison))}</pre><dl>{listed}</dl>"


def command(settings: Settings, comparison: Comparison) -> str:
    """The command that makes the same comparison where model, data and storage are the defaults of their groups."""
    budgets = ",".join(f"{budget:g}" for budget in comparison.budgets)
    asked = settings.compare.tuned
    tuned = f"[{','.join(asked)}]" if isinstance(asked, list) else str(asked).lower()
    words = [
        "flowprune stages=[compare]",
        f"model={settings.model.name}",
        f"data={settings.data.source}",
        f"data.score={settings.data.score}",
        f"compare.methods=[{','.join(methods_of(settings))}]",
        f"compare.budgets=[{budgets}]",
        f"compare.tuned={tuned}",
        f"search.trials={settings.search.trials}",
        f"data.calibration={settings.data.calibration}",
        f"data.heldout={settings.data.heldout}",
        f"seed={settings.seed}",
    ]
    words += [f"serving={settings.serving.engine}"] if settings.serving.engine is not None else []
    words += [f"budget={settings.budget.measure}"] if settings.budget.measure != "retention" else []
    words += [f"extensions=[{','.join(settings.extensions)}]"] if settings.extensions else []
    return " \\\n  ".join(words)
