"""The model as lmms-eval knows models. What it does needs no lmms-eval: :mod:`multimodal.lmms_eval.answering`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch.distributed
from accelerate import PartialState
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from tqdm import tqdm

from multimodal.errors import FlowpruneError
from multimodal.lmms_eval.answering import Answer, Answering
from multimodal.lmms_eval.arguments import Arguments, from_command_line
from multimodal.lmms_eval.conversation import read_conversation
from multimodal.lmms_eval.rounds import rounds
from multimodal.lmms_eval.tally import Tally


class PrunedModel(lmms):
    """A stock transformers model, pruned where a config is given.

    Args:
        arguments: fields of :class:`~multimodal.lmms_eval.arguments.Arguments`.

    Raises:
        FlowpruneError: an argument is wrong, there is no such model or config, or they do not fit each other.
    """

    is_simple = False  # tasks give messages

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._arguments = Arguments(**arguments)
        processes = PartialState()
        self._rank, self._world_size = processes.process_index, processes.num_processes
        own_device = self._arguments.device == "auto" and processes.num_processes > 1
        self._answering = Answering(self._arguments, str(processes.device) if own_device else None)
        self.device = self._answering.device  # for lmms-eval's own tensors

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """The model of a command. A mistake in it is one sentence and exit code 1, where lmms-eval's own is 0."""
        try:
            return cls(**from_command_line(arg_string, additional_config or {}).model_dump())
        except FlowpruneError as error:
            raise SystemExit(f"error: {error}") from error

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to each request."""

        def answers(batch: Sequence[Instance]) -> list[GenerationResult]:
            said = self._answers(batch, [each.args[1](self._document(each)) for each in batch])
            return [GenerationResult(text, TokenCounts(output_tokens=tokens)) for text, tokens in said]

        return self._in_batches(requests, answers)

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request."""
        return self._in_batches(requests, self._rounds)

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Is not asked of a model that takes messages: lmms-eval refuses such tasks before."""
        raise FlowpruneError("flowprune answers tasks that generate: choose one whose output_type is generate_until.")

    def clean(self) -> None:
        """Log what was met; the last that lmms-eval calls, in every process, and only once."""
        tallies = [self._answering.tally]
        if self.world_size > 1:
            tallies *= self.world_size
            torch.distributed.all_gather_object(tallies, self._answering.tally)
        total = Tally.total(tallies)
        if self.rank == 0:
            seconds = max(each.seconds for each in tallies)
            speed = total.new_tokens / seconds if seconds else 0.0
            log_metrics(seconds, total.new_tokens, speed, total.figures(self._answering.config))
        del self._answering
        super().clean()

    def _in_batches(
        self, requests: Sequence[Instance], answers: Callable[[Sequence[Instance]], list[Any]]
    ) -> list[Any]:
        """Answers in the order of the requests; those that ask for answers of one kind go together, long ones first."""
        order = Collator(requests, lambda each: -len(each.args[0]), lambda each: each.args[2], grouping=True)
        found: list[Any] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="flowprune") as progress:
            for batch in order.get_batched(n=self._arguments.batch_size):
                found += answers(batch)
                progress.update(len(batch))
        return order.get_original(found)

    def _rounds(self, batch: Sequence[Instance]) -> list[list[str]]:
        talks = [rounds(each.args[1], self._document(each)) for each in batch]
        asked = {number: next(talk) for number, talk in enumerate(talks)}
        found: dict[int, list[str]] = {}
        while asked:  # those that go on, together
            following = {}
            said = self._answers([batch[number] for number in asked], list(asked.values()))
            for number, answer in zip(asked, said, strict=True):
                try:
                    following[number] = talks[number].send(answer.text)
                except StopIteration as ended:
                    found[number] = ended.value
            asked = following
        return [found[number] for number in range(len(batch))]

    def _document(self, request: Instance) -> Any:
        _, _, _, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _answers(self, batch: Sequence[Instance], asked: Sequence[Any]) -> list[Answer]:
        """What the model says to the messages of each request."""
        talks = [
            read_conversation(
                ChatMessages(messages=messages).to_hf_messages(),
                self._arguments.max_num_frames,
                where=f"{each.args[4]}, document {each.args[3]}",
                counts=not each.metadata.get("__padding_only__"),  # which keeps processes in step
            )
            for each, messages in zip(batch, asked, strict=True)
        ]
        return self._answering.answer(talks, batch[0].args[2])
