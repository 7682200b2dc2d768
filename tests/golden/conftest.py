"""Llama-3.1's own vocabulary, special tokens and chat template; on them, what Meta's code says and a small
model.

The vocabulary is Meta's `tokenizer.model` out of the package `llama-models` (Llama 3 Community License;
installed for the tests, never part of this project). The template is the one TRL packages.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

BOS, PAD, STOPS = 128_000, 128_004, (128_001, 128_008, 128_009)
WORDS, VOCABULARY = 128_000, 128_256
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
"""Llama-3.1's special tokens after the words; the others are reserved, and numbered in their order."""


def special_tokens() -> list[str]:
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(VOCABULARY))
    return [NAMED.get(place) or next(reserved) for place in range(VOCABULARY - WORDS)]


@pytest.fixture(scope="session")
def meta_vocabulary() -> Path:
    """Meta's file of the 128,000 words, as it lies in the installed package."""
    result = importlib.util.find_spec("llama_models")
    if result is None or not result.submodule_search_locations:
        pytest.fail("llama-models is missing: pip install --no-deps llama-models==0.3.0")
    return Path(result.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@pytest.fixture(scope="session")
def ids_by_hand(meta_vocabulary: Path) -> Callable[..., list[int]]:
    """Messages -> ids by Meta's own encoder, the turns written out by hand: no template, no transformers.

    It encodes text alone; every special token is put in as its number.
    """
    from llama_models.llama3.tokenizer import Tokenizer

    meta = Tokenizer(meta_vocabulary)

    def text(words: str) -> list[int]:
        return list(meta.encode(words, bos=False, eos=False))

    def turn(role: str, content: str) -> list[int]:
        return [128_006, *text(role), 128_007, *text("\n\n" + content), 128_009]

    def ids(
        messages: Sequence[dict[str, str]], *, date: str = "26 Jul 2024", prompt: bool = False
    ) -> list[int]:
        system, turns = "", list(messages)
        if turns[0]["role"] == "system":
            system = turns.pop(0)["content"].strip()
        dated = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n{system}"
        rendered = [turn(message["role"], message["content"].strip()) for message in turns]
        opened = [128_006, *text("assistant"), 128_007, *text("\n\n")] if prompt else []
        return [BOS, *turn("system", dated), *(token for piece in rendered for token in piece), *opened]

    return ids


@pytest.fixture(scope="session")
def llama31_tokenizer(meta_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer as Hugging Face has it: bos added by the post-processor, eos the end of
    turn, no pad."""
    import trl
    from tokenizers import processors
    from transformers import GenerationConfig, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    specials = special_tokens()
    inner = TikTokenConverter(str(meta_vocabulary), extra_special_tokens=specials).converted()
    begin = processors.TemplateProcessing(
        single=f"{specials[0]} $A",
        pair=f"{specials[0]} $A {specials[0]} $B",
        special_tokens=[(specials[0], BOS)],
    )
    inner.post_processor = processors.Sequence([inner.post_processor, begin])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131_072,
    )
    template = Path(trl.__file__).parent / "chat_templates" / "llama3_1.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("llama31") / "tokenizer"
    tokenizer.save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS, eos_token_id=list(STOPS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama31_chat(llama31_tokenizer: Path) -> Any:
    from rlhf.models.chat import Chat

    return Chat.load(llama31_tokenizer)
