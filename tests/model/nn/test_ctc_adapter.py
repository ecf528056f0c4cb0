"""The spelling adapter: frames at tokens come out as these tokens' embeddings, and rows do not see each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoints.inventory import adapter_file, is_adapter
from model.checkpoints.loader import presets
from model.config import SpeechLanguageConfig
from model.errors import WeightsMissing
from model.inference.engine import Engine
from model.nn.ctc_adapter import CtcAdapter
from model.nn.speech_llm import SpeechLanguageModel
from tests.model.inference.test_engine import recording, replies
from tests.support.tiny import tiny_checkpoint, tiny_model

TOKENS, SIZE = 40, 24
TABLE = torch.randn(TOKENS, SIZE, generator=torch.Generator().manual_seed(1))


def embed(ids: Tensor) -> Tensor:
    return TABLE[ids]


class Given(CtcAdapter):
    """Whose frames are the encoder frames themselves."""

    def forward(self, encoded: Tensor, lengths: Tensor, *, legacy_batching: bool = False) -> tuple[Tensor, Tensor]:
        return encoded, torch.arange(encoded.shape[1]) < lengths[:, None]


def speller(sharpness: float = 20.0) -> Given:
    built = Given(8, SIZE, 4, [5], TOKENS).eval()
    torch.nn.init.normal_(built.blank, generator=torch.Generator().manual_seed(2))
    built.blank.copy_(built.norm(built.blank))
    built.sharpness.fill_(sharpness)
    return built


def frames_of(built: CtcAdapter, read: list[int]) -> Tensor:
    """Frames where `read` says: a token's place, or the blank's for -1."""
    places = torch.cat([built.norm(TABLE), built.blank[None]])
    return places[read]


runs = st.lists(st.tuples(st.integers(-1, TOKENS - 1), st.integers(1, 4)), min_size=1, max_size=12)


def collapsed(read: list[int]) -> list[int]:
    """The rule of CTC."""
    return [a for a, b in zip(read, [None, *read], strict=False) if a != b and a >= 0]


@given(st.lists(runs, min_size=1, max_size=4))
@torch.no_grad()
def test_what_the_frames_spell_is_handed_over_as_embeddings(rows: list[list[tuple[int, int]]]) -> None:
    built = speller()
    read = [[token for token, times in row for _ in range(times)] for row in rows]
    longest = max(map(len, read)) + 2
    encoded = torch.full((len(read), longest, SIZE), 7.0)  # what lies past a row's end is anything
    for row, tokens in enumerate(read):
        encoded[row, : len(tokens)] = frames_of(built, tokens)
    ctc_frames = built.decode(encoded, torch.tensor([len(tokens) for tokens in read]), embed)
    for row, tokens in enumerate(read):
        own, ids = ctc_frames.mask[row], collapsed(tokens)
        if ids:
            assert ctc_frames.ids[row][own].tolist() == ids
            torch.testing.assert_close(ctc_frames.frames[row][own], TABLE[ids], atol=1e-3, rtol=1e-3)
        else:
            assert int(own.sum()) == 1  # a row of nothing but blank has its likeliest token
        alone = built.decode(encoded[row : row + 1, : len(tokens)], torch.tensor([len(tokens)]), embed)
        torch.testing.assert_close(ctc_frames.frames[row][own], alone.frames[0])


@torch.no_grad()
def test_a_doubt_stays_a_doubt() -> None:
    built = speller(sharpness=1.0)
    between = frames_of(built, [3, 9]).mean(0)
    built.spells.zero_()[[3, 9]] = True
    ctc_frames = built.decode(between[None, None], torch.tensor([1]), embed)
    torch.testing.assert_close(ctc_frames.frames[0, 0], TABLE[[3, 9]].mean(0), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_no_other_tokens_than_it_spells() -> None:
    built = speller()
    built.spells.zero_()[[3, 9]] = True
    ctc_frames = built.decode(frames_of(built, [5, -1, 8, -1, 20])[None], torch.tensor([5]), embed)
    assert set(ctc_frames.ids.flatten().tolist()) <= {3, 9}


def test_the_reply_teaches_convolutions_and_layers() -> None:
    model = tiny_model(adapter_type="spelling", adapter_layers=2)
    frames, mask = model.adapt(torch.randn(2, 30, 32), torch.tensor([30, 17]))
    assert (mask.sum(1) > 1).all()
    frames[mask].square().sum().backward()
    assert model.adapter is not None
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.adapter.parameters())


@torch.no_grad()
def test_new_layers_change_nothing_and_taught_ones_see_their_own_row_alone() -> None:
    torch.manual_seed(0)
    plain, deep = CtcAdapter(8, SIZE, 4, [5], TOKENS), CtcAdapter(8, SIZE, 4, [5], TOKENS, layers=2)
    assert not deep.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    encoded, lengths = torch.randn(4, 21, 8), torch.tensor([21, 6, 1, 0])
    torch.testing.assert_close(deep(encoded, lengths)[0], plain(encoded, lengths)[0])
    for value in deep.layers.parameters():
        torch.nn.init.normal_(value, std=0.3)
    together, mask = deep(encoded, lengths)
    assert together.isfinite().all()
    assert (together - plain(encoded, lengths)[0]).abs()[mask].mean() > 0.1
    for row, length in enumerate(lengths[:3].tolist()):
        alone, _ = deep(encoded[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)
    other = encoded.clone()
    other[0, 20] += 3  # the last frame of the first row is felt by its first
    assert (deep(other, lengths)[0] - together)[0, 0].abs().max() > 1e-3


def test_the_engine_prefills_tokens_and_its_cache_changes_no_reply() -> None:
    checkpoint = tiny_checkpoint(adapter_type="spelling", adapter_layers=1)
    assert replies(Engine(checkpoint), fresh=False)[0] == replies(Engine(checkpoint), fresh=True)[0]


def test_the_voice_is_told_beside_what_is_heard() -> None:
    checkpoint = tiny_checkpoint(adapter_type="spelling", tone_template="He said, {tone}: {words}!")
    engine, said = Engine(checkpoint), recording(2)
    hearing, tokenizer = engine.hear(said), checkpoint.tokenizer
    assert hearing.reading is not None
    assert hearing.frames is not None
    tone = {"surprise": "surprised"}.get(hearing.reading.label, hearing.reading.label)
    assert tone not in ("neutral", "unsure")
    content = engine.content(said, {})
    assert [id_ for id_ in content if isinstance(id_, int) and id_ < 0] == list(range(-2, -2 - len(hearing.frames), -1))
    emitted = [id_ for id_ in content if isinstance(id_, int) and id_ >= 0]
    assert tokenizer.decode(emitted) == f"He said, {tone}: !"
    assert abs(hearing.reading.frame_seconds * len(hearing.frames) - len(said.samples) / 16_000) < 1e-6


@pytest.mark.parametrize(
    ("config", "emitted"),
    [
        ({"adapter_type": "spelling"}, True),
        ({"adapter_type": "conv"}, False),  # its frames carry the voice, as in the original
        ({"path": "transcript", "emotion_source": "encoder"}, True),
        ({"adapter_type": "spelling", "tone_template": "{words}"}, False),
    ],
)
def test_the_tone_is_told_where_nothing_else_tells_it(config: dict[str, str], emitted: bool) -> None:
    checkpoint = tiny_checkpoint(**config)
    engine, said = Engine(checkpoint), recording(2)
    content = engine.content(said, {})
    words = content if isinstance(content, str) else checkpoint.tokenizer.decode([id_ for id_ in content if id_ >= 0])
    assert ("(I am " in words) is emitted
    assert checkpoint.model.config.tells_tone is emitted


@torch.no_grad()
def test_targets_are_computed_anew_when_weights_change() -> None:
    built, frame = speller(), frames_of(speller(), [3])[None]
    one = torch.tensor([1])
    assert built.decode(frame, one, embed).ids.item() == 3
    built.load_state_dict(built.state_dict() | {"spells": torch.arange(TOKENS) == 9})
    assert built.decode(frame, one, embed).ids.item() == 9
    built.train()
    built.spells.zero_()[5] = True
    built.eval()
    assert built.decode(frame, one, embed).ids.item() == 5
    built.train().spells.zero_()
    with pytest.raises(WeightsMissing, match="knows no token"):
        built.decode(frame, one, embed)


def test_the_shipped_adapter_and_lora_fit_their_preset() -> None:
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    text |= {"model_type": "llama", "num_key_value_heads": 3, "vocab_size": 49152}
    speech = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    config = SpeechLanguageConfig(speech_config=speech, text_config=text, **presets()["mini-speech"]["config"])
    with torch.device("meta"):
        model = SpeechLanguageModel(config)
    weights = load_file(adapter_file(presets()["mini-speech"]))
    wanted = {name: value.shape for name, value in model.state_dict().items() if is_adapter(name)}
    assert {name: value.shape for name, value in weights.items()} == wanted
    assert {value.dtype for value in weights.values()} == {torch.float16, torch.bool}
    assert all(value.isfinite().all() for value in weights.values())
    assert 10_000 < int(weights["adapter.spells"].sum()) < 49152
    learnt = [name for name, value in weights.items() if name.endswith("lora_b") and value.any()]
    assert len(learnt) == 29 * 7 + 2  # of the last layer only keys and values reach a reply
    with safe_open(adapter_file(presets()["mini-speech"]), "pt") as opened:
        assert opened.metadata() == {"lora_alpha": str(config.lora_alpha), "lora_scope": config.lora_scope}
    shipped = adapter_file(presets()["mini-speech"]).parent.glob("*.safetensors")
    assert sum(file.stat().st_size for file in shipped) <= 40e6
