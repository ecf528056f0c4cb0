"""Numbers of the original program on its tiny random checkpoint a (see tests/goldens)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor

from model.features import encoder_frames, log_mel, mel_frames
from tests.tiny import tiny_model

GOLDENS = Path(__file__).parents[1] / "goldens"
AUDIO = {
    "single_s": ["speech_1p2s"],
    "single_m": ["speech_4s"],
    "single_l": ["speech_11s"],
    "single_x": ["chirp_2p5s"],
    "single_o": ["tones_odd"],
}
BATCH = ["speech_1p2s", "speech_4s", "speech_11s"]


def features_of(name: str) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(GOLDENS / "audio" / f"{name}.wav", dtype="float32")
    assert rate == 16_000
    return log_mel(WhisperFeatureExtractor(), samples, trimmed=False), len(samples)


@pytest.fixture(scope="module")
def model():
    """Encoder and adapter of checkpoint a; its language model needs the converter, which comes later."""
    config = json.loads((GOLDENS / "checkpoints" / "a" / "config.json").read_text())
    model = tiny_model(
        speech_config=config["whisper_config"],
        adapter_kernel_sizes=[int(size) for size in config["conv_kernel_sizes"].split(",")],
        adapter_inner_size=config["adapter_inner_dim"],
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 8,
            "vocab_size": 8,
        },
    )
    weights = torch.load(GOLDENS / "checkpoints" / "a" / "pytorch_model.bin", weights_only=True)
    encoder = {k.removeprefix("whisper_model."): v for k, v in weights.items() if k.startswith("whisper_model.")}
    assert not model.encoder.load_state_dict(encoder, strict=True).missing_keys
    adapter = {
        k.removeprefix("adapter.").replace("subsampler.conv_layers", "convolutions").replace("speech_ln", "norm"): v
        for k, v in weights.items()
        if k.startswith("adapter.")
    }
    model.adapter.load_state_dict(adapter, strict=True)
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "numeric" / "a" / "forward.safetensors")


@pytest.mark.parametrize("name", ["speech_1p2s", "speech_4s", "speech_11s", "chirp_2p5s", "tones_odd"])
def test_features(name: str) -> None:
    stored = load_file(GOLDENS / "features" / f"{name}.safetensors")
    features, samples = features_of(name)
    head = stored["features_trim"]
    assert features.shape == (1, 80, 3000)
    assert (features[0, :, : head.shape[1]] - head).abs().max() < 2e-4
    assert (features[0, :, head.shape[1] :] - stored["tail_value"]).abs().max() < 2e-4
    assert mel_frames(samples) == int(stored["mask_ones"])


@pytest.mark.parametrize("case", AUDIO)
def test_encoder_and_adapter_of_single_rows(case: str, model, golden) -> None:
    features, samples = features_of(AUDIO[case][0])
    lengths = torch.tensor([encoder_frames(samples)])
    with torch.inference_mode():
        heard = model.hear(features, lengths)
    expected = golden[f"{case}.encoder_out"]
    assert int(golden[f"{case}.encoder_lengths"]) == int(lengths)
    assert (heard.encoded[:, : expected.shape[1]] - expected).abs().max() < 1e-4
    assert torch.equal(heard.mask.long(), golden[f"{case}.adapter_mask"].long())
    assert (heard.frames - golden[f"{case}.adapter_out"]).abs().max() < 1e-4


@pytest.mark.parametrize("legacy", [True, False])
def test_adapter_of_a_batch(legacy: bool, model, golden) -> None:
    parts = [features_of(name) for name in BATCH]
    features = torch.cat([feature for feature, _ in parts])
    lengths = torch.tensor([encoder_frames(samples) for _, samples in parts])
    with torch.inference_mode():
        heard = model.hear(features, lengths, legacy_batching=legacy)
    mask = heard.mask
    assert torch.equal(mask.long(), golden["batch3.adapter_mask"].long())
    batched = (heard.frames - golden["batch3.adapter_out"]).abs()[mask].max()
    alone = max(
        float((heard.frames[row, : len(single)] - single).abs().max())
        for row, case in enumerate(["single_s", "single_m", "single_l"])
        for single in [golden[f"{case}.adapter_out"][0]]
    )
    # The original's batch differs from its own single rows; each switch position reproduces one of the two.
    assert batched < 1e-4 if legacy else batched > 1e-2
    assert alone < 1e-4 if not legacy else alone > 1e-2
