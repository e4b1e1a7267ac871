"""What a command works on: model, samples, study and folder of its settings; and where it writes each file.

Nothing is opened or imported before it is asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal import FlowpruneError
from multimodal.options import ENGINE_FILE, FILE_NAME
from pipelines.settings import Settings
from search.files import SNAPSHOT, TUNED

if TYPE_CHECKING:
    import optuna

    from multimodal import PruningConfig
    from pipelines.data import Part, Sample
    from pipelines.model import OpenedModel


@dataclass(frozen=True)
class Workspace:
    """A run's settings, and what they name.

    Args:
        settings: checked.
    """

    settings: Settings

    @property
    def study_folder(self) -> Path:
        """Everything that a run writes, but caches and MLflow's store."""
        return Path(self.settings.output)

    @property
    def part(self) -> str | None:
        """With search=pareto, the folder of a budget's own files inside the study's; None without, or with several."""
        budget = self.settings.budget
        alone = self.settings.search.pareto and len(budget.budgets) == 1
        return f"{budget.measure}-{budget.budgets[0]:g}" if alone else None

    @property
    def folder(self) -> Path:
        """Where a config's own files are."""
        return self.study_folder / (self.part or "")

    # Files of the study.
    @property
    def composed(self) -> Path:
        """The settings, without credentials."""
        return self.study_folder / "settings.json"

    @property
    def trials(self) -> Path:
        """The table of trials."""
        return self.study_folder / "trials.csv"

    @property
    def snapshot(self) -> Path:
        """The study as plain data."""
        return self.study_folder / SNAPSHOT

    @property
    def history(self) -> Path:
        """The picture of a search: discrepancy by trial, and the best schedules."""
        return self.study_folder / "search.png"

    @property
    def front(self) -> Path:
        """The picture of a search of several budgets."""
        return self.study_folder / "pareto.png"

    @property
    def importance(self) -> Path:
        """The picture of which parameters matter."""
        return self.study_folder / "importance.png"

    @property
    def parallel(self) -> Path:
        """The picture of where the good trials lie."""
        return self.study_folder / "parallel.png"

    @property
    def workers(self) -> Path:
        """The folder of workers that were launched."""
        return self.study_folder / "workers"

    @property
    def vllm_model(self) -> Path:
        """The model's folder with names of weights that vLLM reads."""
        return self.study_folder / "vllm-model"

    @property
    def vllm_loading_log(self) -> Path:
        """What vLLM prints when export has it load the model."""
        return self.study_folder / "vllm-loading.log"

    @property
    def vllm_log(self) -> Path:
        """What a vLLM prints that serve has started."""
        return self.study_folder / "vllm.log"

    @property
    def comparison(self) -> Path:
        """The folder of a comparison."""
        return self.study_folder / "compare"

    # Files of one budget's config.
    @property
    def tuned(self) -> Path:
        """The search's best config."""
        return self.folder / TUNED

    @property
    def unrestricted(self) -> Path | None:
        """The best config of the same search for no engine in particular; None where none is named."""
        folder = self.settings.serving.unrestricted
        return None if folder is None else Path(folder) / (self.part or "") / TUNED

    @property
    def exported(self) -> Path:
        """The config that users load."""
        return self.folder / FILE_NAME

    @property
    def for_vllm(self) -> Path:
        """What export wrote for vLLM."""
        return self.folder / ENGINE_FILE.format("vllm")

    @property
    def validation(self) -> Path:
        """The report of validate."""
        return self.folder / "validation.json"

    @property
    def benchmark(self) -> Path:
        """The report of benchmark."""
        return self.folder / "benchmark.json"

    @property
    def break_even(self) -> Path:
        """The picture of where pruning pays."""
        return self.folder / "break_even.png"

    @property
    def answered(self) -> Path:
        """The picture that generate draws."""
        return self.folder / "generate.png"

    @property
    def maps(self) -> Path:
        """The folder of pictures of what the config sees and keeps."""
        return self.folder / "maps"

    @property
    def overlays(self) -> Path:
        """The folder of pictures of the best, median and worst trial."""
        return self.folder / "overlays"

    # What the settings name.
    @property
    def model(self) -> "OpenedModel":
        """The model, loaded once a process.

        Raises:
            FlowpruneError: it cannot be loaded, or has random weights.
        """
        from pipelines.model import open_model

        return open_model(self.settings.model)

    def samples(self, part: "Part", count: int | None = None) -> "list[Sample]":
        """Calibration or held-out samples.

        Args:
            part: which.
            count: how many; None: as many as the settings say.

        Raises:
            FlowpruneError: bad data.
        """
        from pipelines.data import load_samples

        data = self.settings.data
        return load_samples(data if count is None else data.model_copy(update={part: count}), part, self.settings.seed)

    @property
    def study(self) -> "optuna.Study":
        """The study.

        Raises:
            FlowpruneError: there is none.
        """
        from pipelines.storage import named

        if (study := self.known_study) is None:
            raise FlowpruneError(
                f"{named(self.settings.storage)} has no study {self.settings.study!r}: run stages=[search] first, or "
                "set study=NAME."
            )
        return study

    @property
    def known_study(self) -> "optuna.Study | None":
        """The study, if there is one."""
        from pipelines.storage import find_study

        return find_study(self.settings.storage, self.settings.study)

    def config(self, path: str | None = None) -> "PruningConfig":
        """A config that a stage was given, or else this study's tuned one, or the one that was fetched.

        Raises:
            FlowpruneError: there is none.
        """
        from multimodal import PruningConfig

        if path is not None:
            return PruningConfig.from_pretrained(path)
        for own in (self.tuned, self.exported):
            if own.exists():
                return PruningConfig.from_pretrained(own)
        raise FlowpruneError(self.no_config)

    @property
    def no_config(self) -> str:
        """The sentence for somebody who has no config yet."""
        return f"{self.folder} holds no tuned config: run stages=[calibrate,search] first, or give one."

    def each_budget(self) -> "Iterator[Workspace]":
        """The same for each budget alone."""
        budget = self.settings.budget
        for each in budget.budgets:
            yield self.but(budget=budget.model_copy(update={budget.measure: [each]}))

    def but(self, **settings: Any) -> "Workspace":
        """The same with other settings."""
        return Workspace(self.settings.model_copy(update=settings))
