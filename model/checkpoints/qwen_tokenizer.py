"""Qwen-1's vocabulary as an ordinary fast tokenizer with the same ids, read from qwen.tiktoken.

The file has a line "base64 rank" per token; the rank is its id. Encoding merges the adjacent pair whose joined token
has the lowest rank, until no pair is a token (byte pair encoding as in tiktoken). The 208 special tokens follow the
ranks.
"""

from __future__ import annotations

import base64
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from model.checkpoints.safe_reader import read_text
from model.errors import WeightsMissing

VOCABULARY = "qwen.tiktoken"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{number}|>" for number in range(205)))

# No newline after the last role: the original feeds none, its first "generated" token is that newline.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TOKEN_BYTES = 1024


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a .tiktoken file in the order of their ids, which are 0, 1, 2, ...

    Raises:
        WeightsMissing: there is no such file, or it is not a vocabulary of this kind.
    """
    ranks: dict[int, bytes] = {}
    try:
        for line in read_text(path).splitlines():
            token, rank = line.split()
            ranks[int(rank)] = base64.b64decode(token, validate=True)
    except ValueError as error:
        raise WeightsMissing(f"{path} holds no vocabulary ({error}): get the original's again.") from error
    tokens = [ranks.get(rank, b"") for rank in range(len(ranks))]
    lengths = {len(token) for token in tokens}
    singles = sum(len(token) == 1 for token in tokens)
    if len(set(tokens)) < len(tokens) or 0 in lengths or max(lengths, default=0) > _TOKEN_BYTES or singles < 256:
        raise WeightsMissing(
            f"{path} is damaged (ids with gaps, a token twice, or a byte without token): get the original's again."
        )
    return tokens


def build_tokenizer(tokens: list[bytes]) -> PreTrainedTokenizerFast:
    """The fast tokenizer of these tokens and the special ones, with the original's chat template."""
    written = str.maketrans({chr(byte): letter for byte, letter in bytes_to_unicode().items()})
    letters = {token: token.decode("latin-1").translate(written) for token in tokens}
    # tiktoken merges any pair that makes a token, so every split of a token is a merge, in the order of the ranks.
    merges = [
        (letters[token[:cut]], letters[token[cut:]])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in letters and token[cut:] in letters
    ]
    vocabulary = {letters[token]: rank for rank, token in enumerate(tokens)}
    # A whole word that is a token is taken as it is, as in tiktoken.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Searched in the normalised text, as in the original.
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=True) for special in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
