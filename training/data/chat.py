"""The chat template and system message of a checkpoint or a language model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from model.checkpoints import components
from model.checkpoints.safe_reader import read_config
from model.config import SpeechLanguageConfig


class Chat(NamedTuple):
    """How to prompt a checkpoint or a language model.

    Attributes:
        tokenizer: with a chat template.
        system_prompt: the system message; for a plain language model the original's.
        empathy_prompt: what is added to it in stage 2; for a plain language model the original's.
    """

    tokenizer: PreTrainedTokenizerFast
    system_prompt: str = SpeechLanguageConfig.system_prompt
    empathy_prompt: str = SpeechLanguageConfig.empathy_prompt

    def system(self, *, use_emotion: bool) -> str:
        """The system message.

        Args:
            use_emotion: whether to add the empathy prompt.

        Returns:
            The text.
        """
        return self.system_prompt + self.empathy_prompt * use_emotion


def read_chat(folder: Path) -> Chat:
    """Read the tokenizer and the system message.

    Args:
        folder: of a checkpoint or a language model.

    Returns:
        Tokenizer and prompts.

    Raises:
        WeightsMissing: there is no tokenizer, or it has no chat template.
    """
    config = read_config(folder)
    text = config.get("text_config", config)
    own = {name: str(config[name]) for name in ("system_prompt", "empathy_prompt") if name in config}
    return Chat(components.tokenizer(folder, int(text.get("vocab_size", 0))), **own)
