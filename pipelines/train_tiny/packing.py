"""Several questions about one picture in one sequence, none of which sees another.

A packed row is the prompt's head, the picture, then one segment a question: its text, its answer and the end token.
Every segment starts at the position that follows the picture and attends only to head, picture and itself, so that each
(question, answer) is exactly what the processor and ``generate`` would have made of it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.scenes import Question
from pipelines.train_tiny.labels import IGNORED
from pipelines.train_tiny.model import END, IMAGE, PAD, VOCABULARY

SHARED, PADDING = 0, -1


@dataclass(frozen=True)
class Packed:
    """The text of a batch: ``head`` [head] and, after the picture, [batch, text] each."""

    head: torch.Tensor
    words: torch.Tensor
    offsets: torch.Tensor
    segments: torch.Tensor
    labels: torch.Tensor


def prompt_ids(processor: LlavaProcessor, question: str) -> tuple[list[int], list[int]]:
    """Token ids of the chat prompt before and after its image placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = processor.tokenizer(prompt)["input_ids"]
    image = ids.index(VOCABULARY[IMAGE])
    return ids[:image], ids[image + 1 :]


def pack(processor: LlavaProcessor, batch: list[list[Question]], early: int = 0) -> Packed:
    """Pack each inner list of questions into one row.

    With ``early``, so many words before the end of the prompt must name the answer's first word already.
    """
    rows: list[list[tuple[int, int, int, int]]] = []
    head: list[int] = []
    for questions in batch:
        row = []
        for segment, question in enumerate(questions, start=1):
            head, ids = prompt_ids(processor, question.text)
            answer = [*processor.tokenizer(question.answer)["input_ids"], VOCABULARY[END]]
            labels = [IGNORED] * (len(ids) - 1 - early) + answer[:1] * early + answer + [IGNORED]
            row += [(*token, segment) for token in zip(ids + answer, range(len(labels)), labels, strict=True)]
        rows.append(row)
    longest = max(map(len, rows))
    filler = (VOCABULARY[PAD], 0, IGNORED, PADDING)
    words, offsets, labels, segments = torch.tensor([row + [filler] * (longest - len(row)) for row in rows]).unbind(-1)
    return Packed(torch.tensor(head), words, offsets, segments, labels)


def answer_loss(
    model: LlavaForConditionalGeneration, packed: Packed, picture: torch.Tensor, places: torch.Tensor, patches: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers and the share of answer words that are right (end tokens not counted).

    Args:
        model: the model whose decoder reads the pack.
        packed: the questions.
        picture: the visual tokens, [batch, kept, hidden].
        places: which patch each of them is, [batch, kept].
        patches: patches of a whole picture.
    """
    embedding, device = model.get_input_embeddings(), model.device
    batch, kept = places.shape
    head = embedding(packed.head.to(device)).expand(batch, -1, -1)
    start = head.shape[1]
    embeds = torch.cat([head, picture.to(head.dtype), embedding(packed.words.to(device))], dim=1)
    positions = torch.cat(
        [torch.arange(start).expand(batch, -1), places + start, packed.offsets + start + patches], dim=1
    )
    segments = F.pad(packed.segments, (start + kept, 0), value=SHARED)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions.to(device),
        attention_mask=_mask(segments).to(device),
        use_cache=False,
    ).last_hidden_state[:, start + kept :]
    asked = packed.labels != IGNORED
    logits, labels = model.lm_head(hidden[asked.to(device)]).float(), packed.labels[asked].to(device)
    right = (logits.argmax(dim=-1) == labels)[labels != VOCABULARY[END]]
    return F.cross_entropy(logits, labels), right.float().mean()


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """Additive, causal within a segment and onto the shared part: [batch, 1, length, length]."""
    length = segments.shape[1]
    seen = (segments[:, None, :] == SHARED) | (segments[:, None, :] == segments[:, :, None])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min).unsqueeze(1)
