"""Numbers of the original program on its tiny random checkpoints (see tests/goldens), after conversion.

Tolerances: features 2e-4, encoder and adapter 1e-4, logits 1e-3; token ids exact where no tie is near.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor

from assistant.events import Exchange, Samples, Spoken, Typed
from model.audio.features import encoder_frames, log_mel, mel_frames
from model.inference.engine import Engine
from model.nn.speech_llm import SPEECH_ID, SpeechLanguageModel
from tests.support.converted import GOLDENS, VARIANTS, converted

ALONE = ["speech_1p2s", "speech_4s", "speech_11s", "chirp_2p5s", "tones_odd"]


@cache
def samples_of(name: str) -> Samples:
    samples, rate = soundfile.read(GOLDENS / "audio" / f"{name}.wav", dtype="float32")
    assert rate == 16_000
    return samples


@cache
def features_of(name: str) -> torch.Tensor:
    return log_mel(WhisperFeatureExtractor(), samples_of(name), trimmed=False)


@cache
def golden(variant: str) -> tuple[dict, dict[str, torch.Tensor]]:
    folder = GOLDENS / "numeric" / variant
    return json.loads((folder / "forward.json").read_text()), load_file(folder / "forward.safetensors")


def heard(model: SpeechLanguageModel, names: list[str], *, legacy: bool):
    lengths = torch.tensor([encoder_frames(len(samples_of(name))) for name in names])
    return model.hear(torch.cat([features_of(name) for name in names]), lengths, legacy_batching=legacy)


def prompt(variant: str, case: str, frames: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a stored case: prefix, speech slots, suffix, each padded as the original did."""
    _, stored = golden(variant)
    prefix, suffix = stored[f"{case}.prefix_ids"].long(), stored[f"{case}.suffix_ids"].long()
    parts, masks = [prefix], [stored[f"{case}.prefix_mask"].long()]
    if frames is not None:
        parts.append(torch.full(frames.shape[:2], SPEECH_ID))
        masks.append(stored[f"{case}.attention_mask"].long()[:, prefix.shape[1] : -suffix.shape[1]])
    return torch.cat([*parts, suffix], 1), torch.cat([*masks, stored[f"{case}.suffix_mask"].long()], 1)


@pytest.mark.parametrize("name", ALONE)
def test_features(name: str) -> None:
    stored = load_file(GOLDENS / "features" / f"{name}.safetensors")
    features, head = features_of(name), stored["features_trim"]
    assert features.shape == (1, 80, 3000)
    assert (features[0, :, : head.shape[1]] - head).abs().max() < 2e-4
    assert (features[0, :, head.shape[1] :] - stored["tail_value"]).abs().max() < 2e-4
    assert mel_frames(len(samples_of(name))) == int(stored["mask_ones"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["single_s", "single_m", "single_l", "single_x", "single_o"])
def test_single_rows(variant: str, case: str) -> None:
    spec, stored = golden(variant)
    model = converted(variant).model
    with torch.inference_mode():
        one = heard(model, spec["cases"][case]["audio"], legacy=False)
        ids, mask = prompt(variant, case, one.frames)
        logits = model(ids, attention_mask=mask, speech=one.frames[0]).logits
    if f"{case}.encoder_out" in stored:
        expected = stored[f"{case}.encoder_out"]
        assert (one.encoded[:, : expected.shape[1]] - expected).abs().max() < 1e-4
    if f"{case}.adapter_out" in stored:
        assert (one.frames - stored[f"{case}.adapter_out"]).abs().max() < 1e-4
    assert torch.equal(one.mask.long(), stored[f"{case}.adapter_mask"].long())
    assert (logits[..., spec["cols"]] - stored[f"{case}.logits_cols"]).abs().max() < 1e-3
    assert (logits.logsumexp(-1) - stored[f"{case}.logits_lse"]).abs().max() < 1e-3
    assert (logits[:, -1] - stored[f"{case}.logits_last_row"]).abs().max() < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["batch3", "text1", "text2", "long1", "long2", "longbatch"])
def test_batches_as_the_original_made_them(variant: str, case: str) -> None:
    spec, stored = golden(variant)
    model, names = converted(variant).model, spec["cases"][case]["audio"]
    with torch.inference_mode():
        frames = heard(model, names, legacy=True).frames if names else None
        ids, mask = prompt(variant, case, frames)
        speech = None if frames is None else frames.flatten(0, 1)
        logits = model(ids, attention_mask=mask, speech=speech, legacy_batching=True).logits
    assert (logits[:, -1] - stored[f"{case}.logits_last_row"]).abs().max() < 1e-3
    if f"{case}.logits_cols" in stored:
        off = (logits[..., spec["cols"]] - stored[f"{case}.logits_cols"]).abs()
        assert off[mask.bool()].max() < 1e-3
    if f"{case}.logits_cols_tail16" in stored:
        off = (logits[:, -16:][..., spec["cols"]] - stored[f"{case}.logits_cols_tail16"]).abs()
        assert off[mask[:, -16:].bool()].max() < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_batches_equal_the_single_rows(variant: str) -> None:
    """The same padded rows with positions from the mask and padding kept out of the adapter."""
    spec, stored = golden(variant)
    model = converted(variant).model
    with torch.inference_mode():
        together = heard(model, spec["cases"]["batch3"]["audio"], legacy=False)
        ids, mask = prompt(variant, "batch3", together.frames)
        logits = model(ids, attention_mask=mask, speech=together.frames.flatten(0, 1)).logits
    for row, case in enumerate(["single_s", "single_m", "single_l"]):
        assert (logits[row, -1] - stored[f"{case}.logits_last_row"][0]).abs().max() < 1e-3
    legacy = (stored["batch3.logits_last_row"][0] - stored["single_s.logits_last_row"][0]).abs().max()
    assert legacy > 1.0, "the case tells the two ways apart"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["single_s", "text1"])
def test_the_engine_says_what_the_original_said(variant: str, case: str) -> None:
    """The stored ids are those of our prompt, and the reply is the stored one, to where its limit cut it."""
    stored = json.loads((GOLDENS / "numeric" / variant / "generate.json").read_text())[case]
    loaded = converted(variant)
    settings = copy.deepcopy(loaded.generation)  # the loaded checkpoint is shared by all tests
    loaded = replace(loaded, generation=settings)
    settings.do_sample, settings.max_new_tokens = False, 2 * stored["settings"]["max_new_tokens"]
    settings.repetition_penalty = stored["settings"]["repetition_penalty"]
    engine = Engine(loaded)
    said = loaded.tokenizer.decode(stored["prefix_ids"][0])
    instruction = said.split("<|im_start|>user\n")[1]
    assert not stored["tie_risk"]
    if case == "text1":
        reply = "".join(engine.reply([], Typed(instruction)))
    else:
        reply = "".join(engine.reply([], Spoken(samples_of(stored["audio"][0]))))
    ends = set(settings.eos_token_id)
    ids = stored["returned_ids"][0][1:]
    kept = ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
    expected = loaded.tokenizer.decode(kept, skip_special_tokens=True)
    assert reply.startswith(expected.rstrip("\ufffd"))
    if len(kept) < len(ids):
        assert reply == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chat_of_two_spoken_turns(variant: str) -> None:
    """The history holds text, speech and a retokenised reply; the second turn reuses the first's cache."""
    chat = json.loads((GOLDENS / "numeric" / variant / "generate.json").read_text())["chat"]
    loaded = converted(variant)
    settings = copy.deepcopy(loaded.generation)  # the loaded checkpoint is shared by all tests
    loaded = replace(loaded, generation=settings)
    settings.do_sample, settings.repetition_penalty = False, 1.0
    # Twice the original's limit: where it ended in mid-sentence, the engine goes on.
    settings.max_new_tokens = 2 * chat["turn1"].get("settings", {"max_new_tokens": 24})["max_new_tokens"]
    engine, decode = Engine(loaded), loaded.tokenizer.decode

    def past_of(history: list[dict]) -> list[Exchange]:
        """The exchanges behind the stored items: system, then user and assistant parts, speech by its length."""
        texts = [decode(item["ids"]) if "ids" in item else item for item in history[1:-1]]
        messages, replies = [], []
        for at, text in enumerate(texts):
            if isinstance(text, dict):
                messages.append(Spoken(samples_of(next(n for n in chat["audio"] if fits(n, text)))))
            elif "<|im_start|>user\n" in text and text.endswith("<|im_end|>"):
                messages.append(Typed(text.split("user\n")[1].removesuffix("<|im_end|>")))
            elif "<|im_start|>assistant\n" in text:
                replies.append(text.split("assistant\n")[1].removesuffix("<|im_end|>"))
            assert at < len(texts)
        return [Exchange(message, reply) for message, reply in zip(messages, replies, strict=False)]

    def fits(name: str, item: dict) -> bool:
        return mel_frames(len(samples_of(name))) == item["speech_mask_ones"]

    for turn, name in zip(("turn1", "turn2"), chat["audio"], strict=True):
        past = past_of(chat[turn]["history"])
        ids, _ = engine.prompt(past, Spoken(samples_of(name)), True)
        stored = [token for item in chat[turn]["history"] for token in item.get("ids", [])]
        assert [token for token in ids if token >= 0] == stored
        reply = "".join(engine.reply(past, Spoken(samples_of(name))))
        returned = chat[turn]["returned_ids"][0][1:]
        kept = returned[: next((at for at, t in enumerate(returned) if t in settings.eos_token_id), len(returned))]
        assert reply.startswith(decode(kept, skip_special_tokens=True).rstrip("\ufffd"))
        assert not chat[turn]["tie_risk"]
    assert engine.figures.reused > 0
