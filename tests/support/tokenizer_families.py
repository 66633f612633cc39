"""Small tokenizers of the kinds that language models have, each with the settings of a real one.

Each is trained here in a fraction of a second, on the sample facts and the letters of a few other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from project import SHARED_DATA
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_attr.facts.sources import SAMPLE, open_rows

GPT2_FOLDER = SHARED_DATA / "gpt2-tokenizer"
SCRIPTS = {
    "latin": "abeostzADSéüñøłŠİßﬁ",
    "combining": "aeon\u0301\u0308\u0327\u0303",
    "cjk": "東京都北大学国の\u30ab\u30bf한국",
    "arabic": "القاهرةمصرَُ",
    "hebrew": "ירושלים",
    "devanagari": "हिन्दीरामकमल",
    "emoji": "😀👩\u200d🚀🇪🇸\ufe0f👍🏽ﷺ",
    "digits": "0123456789½²",
    "punctuation": "-'’.,()&/!“”",
}
SIZE = 1000
# The pattern of the Llama 3 tokenizer without its contractions.
LLAMA3_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def corpus() -> tuple[str, ...]:
    facts = [
        f"{row['prompt']}{row[answer]}" for row in open_rows(SAMPLE) for answer in ("target_true", "target_false")
    ]
    # Vocabularies with an unknown token do not learn emoji.
    return (*facts, *(" ".join(letters) for script, letters in SCRIPTS.items() if script != "emoji"))


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def wrapped(tokenizer: Tokenizer, template: str, before: Sequence[processors.PostProcessor] = (), **names: str):
    """Adds the special tokens of a template around the text, and their names in transformers."""
    tokens = [(token, tokenizer.token_to_id(token)) for token in set(template.split()) - {"$A"}]
    template_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    tokenizer.post_processor = processors.Sequence([*before, template_processor])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=SIZE, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )


def gpt2() -> PreTrainedTokenizerBase:
    """Has a beginning of sequence, but does not add it."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return wrapped(tokenizer, "$A", **names)


def llama3() -> PreTrainedTokenizerBase:
    """Adds a beginning of sequence; its offsets leave out the space before a word."""
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    byte_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_level(pre_tokenizers.Sequence([split, byte_pieces]), ["<|begin_of_text|>"])
    trimmed = processors.ByteLevel(trim_offsets=True)
    return wrapped(tokenizer, "<|begin_of_text|> $A", [trimmed], bos_token="<|begin_of_text|>")


def roberta() -> PreTrainedTokenizerBase:
    """Byte-level; puts a space before the text and special tokens on both sides."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>"])
    trimmed = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    return wrapped(tokenizer, "<s> $A </s>", [trimmed], bos_token="<s>", eos_token="</s>")


def sentencepiece_bpe() -> Tokenizer:
    """Falls back to bytes for unknown characters. Trained on words, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=SIZE, special_tokens=specials, show_progress=False, limit_alphabet=60),
    )


def llama2() -> PreTrainedTokenizerBase:
    """Its normaliser puts a space before the text."""
    tokenizer = sentencepiece_bpe()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrapped(tokenizer, "<s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama() -> PreTrainedTokenizerBase:
    """The newer form of the same: a space before the first word of the text only."""
    tokenizer = sentencepiece_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return wrapped(tokenizer, "<s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> PreTrainedTokenizerBase:
    """Puts no space before the text."""
    tokenizer = sentencepiece_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return wrapped(tokenizer, "<s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_unigram(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizer
    specials = ["<s>", "</s>", "<unk>"]
    return trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )


def xglm() -> PreTrainedTokenizerBase:
    """Begins a text with the end of sequence."""
    tokenizer = sentencepiece_unigram(pre_tokenizers.Metaspace())
    return wrapped(tokenizer, "</s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def t5() -> PreTrainedTokenizerBase:
    """Replaces the spaces with its own, one before every word."""
    spaces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return wrapped(sentencepiece_unigram(spaces), "$A </s>", eos_token="</s>", unk_token="<unk>")


def bert() -> PreTrainedTokenizerBase:
    """Lowercases, drops accents and control characters; its first token is not named beginning of sequence."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=specials, show_progress=False)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return wrapped(trained(tokenizer, trainer), "[CLS] $A [SEP]", **names)


BYTE_LEVEL: dict[str, Callable[[], PreTrainedTokenizerBase]] = {"gpt2": gpt2, "llama3": llama3, "roberta": roberta}
BYTE_FALLBACK: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama2": llama2,
    "llama": llama,
    "gemma": gemma,
}
NORMALISING: dict[str, Callable[[], PreTrainedTokenizerBase]] = {"xglm": xglm, "t5": t5, "bert": bert}
LOSSLESS = {**BYTE_LEVEL, **BYTE_FALLBACK}
FAMILIES = {**BYTE_LEVEL, **BYTE_FALLBACK, **NORMALISING}


@cache
def family(name: str) -> PreTrainedTokenizerBase:
    return FAMILIES[name]()


@cache
def real_gpt2() -> PreTrainedTokenizerBase:
    return GPT2TokenizerFast.from_pretrained(GPT2_FOLDER)


def spelled(name: str, token_ids: Sequence[int]) -> list[bytes]:
    """The bytes of each token of a byte-level or byte-fallback vocabulary, from its name alone."""
    spell = _spell_byte_level if name in BYTE_LEVEL else _spell_byte_fallback
    return [spell(token) for token in family(name).convert_ids_to_tokens(token_ids)]


def _spell_byte_level(token: str) -> bytes:
    # GPT-2's alphabet: printable Latin-1 stands for its own byte, U+0100 and on for the other bytes in order.
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return bytes(ord(letter) if ord(letter) < 256 else others[ord(letter) - 256] for letter in token)


def _spell_byte_fallback(token: str) -> bytes:
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
