"""The training section: QLoRA-style steps of adapter, LoRA and emotion head over the 4-bit language model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.full_size.run import FRAMES, Figures, Run
from model.nn.adapter import ConvAdapter
from model.nn.speech_llm import SPEECH_ID, SpeechLanguageModel

_IGNORED = -100


def train(run: Run) -> Figures:
    """Steps on one fixed batch of random speech and text; the loss must fall."""
    model, size = run.loaded(), run.size
    run.forget_peak()
    trained = _trainable(model)
    optimizer = torch.optim.AdamW(trained, lr=size.learning_rate, weight_decay=0.05)
    batch = _batch(run, model)
    losses, started = list[Tensor](), run.now()
    for step in range(size.steps):
        if step == 2:  # the first steps prepare kernels and the optimizer's memory
            started = run.now()
        with torch.autocast(run.device, torch.bfloat16, enabled=run.cuda):
            loss = _loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    seconds = run.now() - started
    first, last = (float(torch.stack(part).mean()) for part in (losses[:3], losses[-3:]))
    figures: Figures = {
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "training_positions_per_second": batch[2].numel() * (size.steps - 2) / seconds,
        "training_step_ms": 1e3 * seconds / (size.steps - 2),
        "first_loss": first,
        "last_loss": last,
        "loss_went_down": last < first,
    }
    return figures | ({"training_peak_gb": torch.cuda.max_memory_allocated() / 1e9} if run.cuda else {})


def _trainable(model: SpeechLanguageModel) -> list[torch.nn.Parameter]:
    """Freeze all but adapter, LoRA and head, which are kept in 32 bits: an update is small compared with a weight."""
    assert model.adapter is not None
    assert model.emotion_head is not None
    model.requires_grad_(False)
    model.adapter.float()
    model.emotion_head.float()
    lora = [parameter for name, parameter in model.language_model.named_parameters() if ".lora_" in name]
    for parameter in lora:
        parameter.data = parameter.data.float()
    trained = [*model.adapter.parameters(), *model.emotion_head.parameters(), *lora]
    for parameter in trained:
        parameter.requires_grad_(True)
    model.language_model.train()
    model.language_model.activation_checkpointing_enable()
    return trained


def _batch(run: Run, model: SpeechLanguageModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of 10 s [B, mels, 3000], their encoder frames [B], ids [B, speech + text], emotions [B]."""
    rows, adapter = run.size.batch, model.adapter
    assert isinstance(adapter, ConvAdapter)
    random = torch.Generator().manual_seed(9)
    features = torch.randn(rows, model.config.speech_config.num_mel_bins, 3000, generator=random)
    lengths = torch.full((rows,), FRAMES)
    speech = torch.full((rows, int(adapter.frames(lengths)[0])), SPEECH_ID)
    text = torch.randint(0, 500, (rows, run.size.text_tokens), generator=random)
    emotions = torch.randint(0, 5, (rows,), generator=random)
    return (
        features.to(run.device, run.dtype),
        lengths.to(run.device),
        torch.cat([speech, text], 1).to(run.device),
        emotions.to(run.device),
    )


def _loss(model: SpeechLanguageModel, features: Tensor, lengths: Tensor, ids: Tensor, emotions: Tensor) -> Tensor:
    heard = model.hear(features, lengths)
    assert heard.frames is not None
    assert heard.mask is not None
    assert model.emotion_head is not None
    output = model(
        ids,
        attention_mask=torch.ones_like(ids),
        speech=heard.frames[heard.mask],
        labels=ids.masked_fill(ids == SPEECH_ID, _IGNORED),
        use_cache=False,
    )
    assert output.loss is not None
    return output.loss + cross_entropy(model.emotion_head(heard.frames, heard.mask), emotions)
