"""The chat prompt as token ids, with speech in place of the user's words.

The structure comes from the tokenizer's chat template; the content is encoded separately, so special tokens in a user's
text or a transcript stay plain text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerFast

from model.config import SpeechLanguageConfig

_CONTENT = "\ue000"  # a private-use character: marks the places of content in the rendered template

_ADJECTIVES = {"surprise": "surprised"}

Content = str | list[int]
"""Text, or ids ready for the language model (those of speech frames are negative)."""


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode plain text: NFC-normalised, special tokens not interpreted.

    Args:
        tokenizer: of the language model.
        text: any text.

    Returns:
        Token ids.
    """
    text = unicodedata.normalize("NFC", text)
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def told_tone(labels: Sequence[str]) -> str:
    """Name the possible emotions of a voice in a prompt.

    Args:
        labels: of `EMOTIONS`, the likeliest first.

    Returns:
        For example "sad", or "sad or neutral".
    """
    return " or ".join(_ADJECTIVES.get(label, label) for label in labels)


def with_tone(config: SpeechLanguageConfig, words: str, labels: Sequence[str]) -> str:
    """Write a message as its prompt holds it.

    Args:
        config: how much of the tone is told, and in which words.
        words: what was said.
        labels: the emotions that the voice may have had, the likeliest first; none: not read, or unsure.

    Returns:
        The text.
    """
    sure = len(labels) == 1 and labels[0] != "neutral"
    told = labels if config.tells_tone and (sure or config.tone_detail == "candidates") else ()
    return config.tone_template.format(tone=told_tone(told), words=words) if told else words


def chat_ids(
    tokenizer: PreTrainedTokenizerFast,
    system: str,
    turns: Sequence[tuple[Content, str]],
    user: Content | None,
) -> list[int]:
    """Encode a conversation.

    Args:
        tokenizer: with a chat template.
        system: the system prompt.
        turns: past (user content, reply) pairs.
        user: the new message; the prompt then ends where the reply begins. None: the prompt ends where the next message
            would begin.

    Returns:
        Token ids; those of speech frames are negative.
    """
    contents: list[Content] = [system]
    roles = ["system"]
    for said, reply in turns:
        contents += [said, reply]
        roles += ["user", "assistant"]
    if user is not None:
        contents.append(user)
    roles.append("user")
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": _CONTENT} for role in roles],
        tokenize=False,
        add_generation_prompt=user is not None,
    )
    pieces = cast(str, rendered).split(_CONTENT)
    ids = tokenizer.encode(pieces[0], add_special_tokens=False)
    for content, piece in zip(contents, pieces[1:], strict=user is not None):
        ids += encode_text(tokenizer, content) if isinstance(content, str) else content
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids
