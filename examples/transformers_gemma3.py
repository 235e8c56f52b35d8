"""Gemma 3 of Hugging Face transformers, unchanged, with omnicupy's attention and with eager: the same tokens.

Run: python examples/transformers_gemma3.py [--tokens 20]. Needs transformers: pip install '.[transformers]' in the
checkout. The model is a small one with random weights; a real one is
AutoModelForImageTextToText.from_pretrained(NAME, attn_implementation="omnicupy"). Uses the GPU where torch finds one.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transformers

import omnicupy.transformers

IMAGE, TOKENS_OF_AN_IMAGE = 990, 16


def small_model(attention: str) -> Any:
    """A Gemma 3 with local and global layers; the same weights every time."""
    text = {
        **{"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
        **{"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"sliding_window": 24, "query_pre_attn_scalar": 16, "eos_token_id": None},
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 32, "patch_size": 4},
        mm_tokens_per_image=TOKENS_OF_AN_IMAGE,
        image_token_index=IMAGE,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(config, attn_implementation=attention)


def small_inputs() -> dict[str, torch.Tensor]:
    """Two rows with an image each; the second is shorter and padded on the left."""
    image = torch.full((TOKENS_OF_AN_IMAGE,), IMAGE)
    text = torch.randint(1, 900, (60,), generator=torch.Generator().manual_seed(0))
    rows = [torch.cat([text[:20], image, text[20:]]), torch.cat([text[:5], image, text[40:]])]
    tokens = torch.stack([torch.nn.functional.pad(row, (len(rows[0]) - len(row), 0)) for row in rows])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "token_type_ids": (tokens == IMAGE).long(),
        "pixel_values": pixels,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    place = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {"device": "cpu"}
    name = omnicupy.transformers.register()

    inputs = {key: value.to(place["device"]) for key, value in small_inputs().items()}
    if on_gpu:
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    generated = {}
    for attention in ("eager", name):
        model = small_model(attention).eval().to(**place)
        generated[attention] = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False)
        print(f"{attention}: {generated[attention][0, -options.tokens :].tolist()}")
    same = (generated["eager"] == generated[name]).float().mean().item()
    print(f"tokens that are the same: {same:.0%}")


if __name__ == "__main__":
    main()
