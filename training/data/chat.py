"""The chat template and system message of a checkpoint or a language model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from model.checkpoints import components
from model.checkpoints.safe_reader import read_config
from model.config import SpeechLanguageConfig


class Chat(NamedTuple):
    """How a checkpoint, or a language model, is spoken to.

    Attributes:
        tokenizer: with a chat template.
        system_prompt, empathy_prompt: the system message, and what is added to it in stage 2; of a plain language
            model the defaults, which are the original's.
    """

    tokenizer: PreTrainedTokenizerFast
    system_prompt: str = SpeechLanguageConfig.system_prompt
    empathy_prompt: str = SpeechLanguageConfig.empathy_prompt

    def system(self, *, use_emotion: bool) -> str:
        """The system message."""
        return self.system_prompt + self.empathy_prompt * use_emotion


def read_chat(folder: Path) -> Chat:
    """The tokenizer and system message of a checkpoint or of a language model's folder.

    Raises:
        WeightsMissing: there is no tokenizer, or none with a chat template.
    """
    config = read_config(folder)
    text = config.get("text_config", config)
    own = {name: str(config[name]) for name in ("system_prompt", "empathy_prompt") if name in config}
    return Chat(components.tokenizer(folder, int(text.get("vocab_size", 0))), **own)
