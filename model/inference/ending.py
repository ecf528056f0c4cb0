"""Where a reply ends that would go on: at a sentence's end, never inside a word.

The limit is soft. The sentence that is being said when it is reached may go on for half as many tokens again; if it has
not ended then, it is taken back. So a sentence that begins in the second half of the limit is held back until it
ends. A sentence that began before cannot be taken back: it ends before the next word.
"""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?:[.!?…]|(?P<han>[。！？]))[\"'”’)]*$")


class Ending:
    """What of a reply may be told, and whether it has to end.

    Args:
        limit: tokens after which it ends with its sentence.

    Attributes:
        told: what was given out.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.told, self._held = limit, "", ""

    def reached(self, piece: str, tokens: int) -> bool:
        """Whether the reply ends before `piece`, the text of the next token; `tokens` came before."""
        over = tokens - self.limit
        if over < 0:
            return False
        past = over - self.limit // 2
        return self._ends_before(piece) or (past >= 0 and (not piece or piece[0].isspace() or past >= self.limit // 2))

    def take(self, piece: str, tokens: int) -> str:
        """Add the text of the reply's token number `tokens`; what may be told now."""
        if tokens > self.limit // 2 and self._ends_before(piece):
            settled, self._held = self._held, piece
        elif self._held:
            settled, self._held = "", self._held + piece
        else:
            settled = piece
        self.told += settled
        return settled

    def rest(self, *, cut: bool) -> str:
        """What was held back and may be told at the end; an unfinished sentence only if the reply was not `cut`."""
        settled = "" if cut and not self._ends_before("") else self._held
        self._held = ""
        self.told += settled
        return settled

    def _ends_before(self, piece: str) -> bool:
        """Whether a sentence has just ended, and `piece` begins another."""
        end = _SENTENCE_END.search((self.told + self._held).rstrip())
        return end is not None and (not piece or piece[0].isspace() or end["han"] is not None)
