"""Run by a Python that has vLLM: greedy tokens of prompts whose images are ready embeddings.

``vllm_answers.py MODEL OVERRIDES PROMPTS [video]``: a folder, JSON of the model's config, a file of torch.save, and
whether the model could take videos, too.
"""

import json
import os
import sys


def main() -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    import torch
    from vllm import LLM, SamplingParams

    model, overrides, prompts = sys.argv[1], json.loads(sys.argv[2]), torch.load(sys.argv[3], weights_only=True)
    engine = LLM(
        model,
        hf_overrides=overrides,
        enable_mm_embeds=True,
        skip_mm_profiling=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 2} | ({"video": 0} if sys.argv[4:] else {}),
    )
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=1)
    asked = []
    for prompt in prompts:
        named = {name: [image[name] for image in prompt["images"]] for name in prompt["images"][0]}
        data = named["image_embeds"]
        if "image_grid_thw" in named:
            data = {"image_embeds": torch.cat(data), "image_grid_thw": torch.stack(named["image_grid_thw"])}
        asked.append({"prompt_token_ids": prompt["ids"], "multi_modal_data": {"image": data}})
    outputs = engine.generate(asked, greedy)
    print(json.dumps([[list(each.outputs[0].token_ids), len(each.prompt_token_ids)] for each in outputs]))


if __name__ == "__main__":
    main()
