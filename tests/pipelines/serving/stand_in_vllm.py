"""A server that reads ready embeddings as a vLLM with our plugin does, and computes with the stock language model."""

import base64
import copy
import json
import threading
from io import BytesIO
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from torch import Tensor

from multimodal.serving.rows import unpacked
from pipelines.data.pictures import as_shown
from pipelines.model import OpenedModel


class StandInVllm:
    """Greedy answers of one model.

    Args:
        opened: the model.
    """

    def __init__(self, opened: OpenedModel) -> None:
        self._processor: Any = opened.processor
        self._model: Any = copy.deepcopy(opened.model)  # the endpoint's is at work in another thread
        self._lock = threading.Lock()
        self.prompt_tokens: list[int] = []
        self.fails: int | None = None  # with this status

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/health", self.health)
        return app

    async def health(self) -> dict[str, str]:
        return {}

    async def chat(self, http: Request) -> Response:
        body = json.loads(await http.body())
        assert body["model"] == "there"
        if self.fails is not None:
            return JSONResponse({"error": {"message": "The stand-in says no."}}, self.fails)
        if body["messages"][-1]["content"] == "refuse":
            return JSONResponse({"error": {"message": "max_tokens is too large."}}, 400)
        with self._lock:
            text, usage = self._answer(body)
        head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        parts = [{"role": "assistant", "content": ""}, *({"content": letter} for letter in text)]
        chunks = [{"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if body["stream_options"]["include_usage"]:
            chunks.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(head | {'object': 'chat.completion.chunk'} | chunk)}\n\n" for chunk in chunks]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    @torch.inference_mode()
    def _answer(self, body: dict[str, Any]) -> tuple[str, dict[str, int]]:
        processor, model = self._processor, self._model
        shown: list[Tensor] = []
        for part in (part for message in body["messages"] for part in message["content"] if isinstance(part, dict)):
            if part["type"] == "image_embeds":
                rows = torch.load(BytesIO(base64.b64decode(part["image_embeds"])), weights_only=True)
                shown.append(rows)
                part["type"] = "image"
            elif part["type"] == "image_url":
                image = as_shown(Image.open(BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))
                shown.append(processor.image_processor(image, return_tensors="pt")["pixel_values"])
                part["type"] = "image"
        ids = processor.tokenizer(processor.apply_chat_template(body["messages"], add_generation_prompt=True))[
            "input_ids"
        ]
        words, embeds, positions, following = model.get_input_embeddings(), [], [], 0
        for token in ids:
            if token != model.config.image_token_id:
                embeds.append(words(torch.tensor([token])))
                positions.append(torch.tensor([following]))
                following += 1
                continue
            image = shown.pop(0)
            if image.ndim == 4:
                image = model.model.get_image_features(image).pooler_output[0]
                own, span = torch.arange(len(image)), len(image)
            else:
                [own], span = unpacked(image, axes=1)
            embeds.append(image[:, : words.weight.shape[1]])
            positions.append(own + following)
            following += span
        answer: list[int] = []
        while len(answer) < body["max_tokens"]:
            states = torch.cat(embeds)[None]
            mask = torch.ones(states.shape[:2], dtype=torch.long)
            output = model.model.language_model(
                inputs_embeds=states, position_ids=torch.cat(positions)[None], attention_mask=mask, use_cache=False
            )
            token = int(model.lm_head(output.last_hidden_state[:, -1]).argmax())
            if token == model.generation_config.eos_token_id:
                break
            answer.append(token)
            embeds.append(words(torch.tensor([token])))
            positions.append(torch.tensor([following]))
            following += 1
        prompt = sum(map(len, embeds)) - len(answer)
        self.prompt_tokens.append(prompt)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(answer), "total_tokens": prompt + len(answer)}
        return processor.tokenizer.decode(answer, skip_special_tokens=True), usage
