"""The convolutional adapter: encoder frames to fewer language-model embeddings.

Strided convolutions with gated linear units halve the frame rate each (three turn Whisper's 20 ms into 160 ms); a
residual bottleneck and a layer norm follow (BLSP-Emo, arXiv 2406.03872, section 3; layout of speech-to-text adapters,
arXiv 2010.05171).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvAdapter(nn.Module):
    """`len(kernel_sizes)` convolutions of stride 2, then x + fc2(GELU(fc1 x)) and a LayerNorm.

    Args:
        speech_size: width of the encoder's frames, D.
        text_size: width of the language model's embeddings, E.
        inner_size: width of the bottleneck.
        kernel_sizes: one odd kernel size per convolution.
    """

    def __init__(self, speech_size: int, text_size: int, inner_size: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        last = len(kernel_sizes) - 1
        self.convolutions = nn.ModuleList(
            nn.Conv1d(
                speech_size,
                2 * (text_size if index == last else speech_size),
                kernel,
                stride=2,
                padding=kernel // 2,
            )
            for index, kernel in enumerate(kernel_sizes)
        )
        self.fc1 = nn.Linear(text_size, inner_size, bias=False)
        self.fc2 = nn.Linear(inner_size, text_size, bias=False)
        self.norm = nn.LayerNorm(text_size)

    def frames(self, lengths: Tensor) -> Tensor:
        """Number of adapter frames: floor((n - 1) / 2 + 1) per convolution.

        Args:
            lengths: int64 [B], numbers of encoder frames.

        Returns:
            int64 [B].
        """
        for _ in self.convolutions:
            lengths = (lengths - 1) // 2 + 1
        return lengths

    def forward(self, encoded: Tensor, lengths: Tensor, *, legacy_batching: bool = False) -> tuple[Tensor, Tensor]:
        """Adapt a padded batch.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames of each row.
            legacy_batching: keep the frames past a row's end, as the original does. By default they are zeroed before
                every convolution, so that a row's result does not depend on its neighbours.

        Returns:
            Frames [B, N, E] and their mask, bool [B, N].
        """
        hidden = encoded.transpose(1, 2)
        for convolution in self.convolutions:
            if not legacy_batching:
                hidden = hidden * valid_mask(lengths, hidden.shape[2])[:, None, :]
            hidden = nn.functional.glu(convolution(hidden), dim=1)
            lengths = (lengths - 1) // 2 + 1
        mask = valid_mask(lengths, hidden.shape[2])
        hidden = self.contextualize(hidden.transpose(1, 2), mask)
        return self.norm(hidden + self.fc2(nn.functional.gelu(self.fc1(hidden)))), mask

    def contextualize(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hook for subclasses between the convolutions and the bottleneck.

        Args:
            hidden: [B, N, E].
            mask: bool [B, N], valid frames.

        Returns:
            [B, N, E].
        """
        return hidden


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask of each row's valid frames among `size` frames: bool [B, size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
