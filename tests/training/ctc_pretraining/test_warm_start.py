"""Stage 0 on made-up states: every token has a sound of its own, so a working trainer must learn to spell."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.errors import BadInput
from model.nn.ctc_adapter import CtcAdapter
from tests.support.tiny import tiny_tokenizer
from training.ctc_pretraining import ctc_training as spelling
from training.ctc_pretraining.ctc_training import CtcPretrainer, Recipe, loss_of, on_sphere, word_error
from training.ctc_pretraining.warm_start import Corpora, WarmStart, batches
from training.ctc_pretraining.warm_start import train as train_in
from training.data.feature_cache import FeatureCache
from training.runs.run_folder import Run

SIZE, TEXT_SIZE, TOKENS = 16, 24, 300
BLANK = torch.randn(TEXT_SIZE, generator=torch.Generator().manual_seed(2))
WORDS = ["the", "hat", "sat", "in", "a", "hut", "at", "ten", "near", "oak"]
RECIPE = Recipe(
    inner_size=16,
    steps=12,
    batch_frames=700,
    learning_rate=5e-3,
    warm_up=4,
    negatives=8,
    masks=0,
    noise=0.05,
    sharpness=0.12,
    drop_channels=0.0,
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(TOKENS, TEXT_SIZE, generator=torch.Generator().manual_seed(0)) + 1


def fill(folder, tokenizer, first, last, split="train"):
    """Clips `first` to `last`: eight frames of its own pattern for each token, frames of one more between."""
    folder.mkdir(exist_ok=True)
    encoder = WhisperEncoder(
        WhisperConfig(d_model=SIZE, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8)
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    sounds = torch.randn(TOKENS, SIZE, generator=torch.Generator().manual_seed(1)) * 3
    cache = FeatureCache.create(folder / "features", encoder, "trimmed")
    with (folder / "manifest.jsonl").open("a") as manifest:
        for number in range(first, last):
            random = np.random.default_rng(number)
            text = " ".join(random.choice(WORDS, random.integers(1, 5)))
            ids = tokenizer(text).input_ids
            states = sounds[-1].repeat(12 * len(ids) + 8, 1)
            for place, token in enumerate(ids):
                states[12 * place + 4 : 12 * place + 12] = sounds[token]
            cache.add(f"{split}{number}", states)
            row = {"key": f"{split}{number}", "text": text, "engine": "made-up", "voice": "v", "split": split}
            manifest.write(json.dumps(row) + "\n")
    cache.close()


@pytest.fixture
def corpus(tmp_path, tokenizer):
    fill(tmp_path / "corpus", tokenizer, 0, 40)
    fill(tmp_path / "check", tokenizer, 1000, 1010, "validation")
    return tmp_path


def make_run(corpus, tokenizer, embeddings, name="run", recipe=RECIPE, blank=BLANK):
    corpora = Corpora([corpus / "corpus"], tokenizer)
    checks = Corpora([corpus / "check"], tokenizer)
    (corpus / name).mkdir(exist_ok=True)
    return WarmStart(corpus / name, recipe, corpora, embeddings, on_sphere(blank, embeddings), checks)


def train(training, **options):
    return train_in(training, Run(training.folder), **options)


def test_it_learns_to_spell_what_it_never_heard_together(corpus, tokenizer, embeddings):
    recipe = Recipe(**{f: getattr(RECIPE, f) for f in RECIPE.__slots__} | {"steps": 320, "averaging": 0.95})
    run = make_run(corpus, tokenizer, embeddings, recipe=recipe)
    figures = train(run, check_every=160)
    assert figures["validation"] < 0.05
    assert figures["words"] == {"validation made-up": figures["validation"]}
    # As part of a checkpoint it hands over the embeddings of what was said, one for each token.
    clips, _ = run.checks.clips()
    adapter = CtcAdapter(SIZE, TEXT_SIZE, recipe.inner_size, recipe.kernel_sizes, TOKENS)
    saved = load_file(run.folder / "adapter.safetensors")
    adapter.load_state_dict({name.removeprefix("adapter."): value for name, value in saved.items()})
    clip = clips[0]
    with torch.no_grad():
        states = clip.cache[clip.row["key"]][None]
        spelt = adapter.decode(states, torch.tensor([clip.frames]), lambda ids: embeddings[ids])
    assert tuple(spelt.ids[0].tolist()) == clip.ids
    torch.testing.assert_close(spelt.frames[0], embeddings[list(clip.ids)], atol=0.1, rtol=0.1)
    assert not adapter.spells.all()


@pytest.mark.parametrize(("at", "layers"), [(1, 0), (5, 2), (7, 1)])
def test_a_stopped_run_goes_on_exactly(corpus, tokenizer, embeddings, at, layers, monkeypatch):
    recipe = replace(RECIPE, layers=layers)
    whole = make_run(corpus, tokenizer, embeddings, "whole", recipe)
    train(whole)
    first = make_run(corpus, tokenizer, embeddings, "parts", recipe)
    step = first.train_step

    def stop_at(batch, vocabulary):
        loss = step(batch, vocabulary)
        if first.step == at:
            (corpus / "parts" / "stop").touch()
        return loss

    monkeypatch.setattr(first, "train_step", stop_at)
    train(first)
    assert first.step == at
    (corpus / "parts" / "stop").unlink()
    second = make_run(corpus, tokenizer, embeddings, "parts", recipe)
    train(second)
    for name, value in whole.pretrainer.state_dict().items():
        assert torch.equal(second.pretrainer.state_dict()[name], value), name
    saved, expected = (load_file(corpus / name / "adapter.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    assert "12 of 12 steps" in (corpus / "parts" / "card.md").read_text()


def test_another_run_is_begun_with_and_its_new_layers_learn(corpus, tokenizer, embeddings, monkeypatch):
    monkeypatch.setattr(spelling, "augment", lambda states, *_: states)
    first = make_run(corpus, tokenizer, embeddings, "first")
    train(first)
    deeper = replace(RECIPE, layers=2, start=str(corpus / "first"))
    run = make_run(corpus, tokenizer, embeddings, "deeper", deeper, blank=-BLANK)  # where they lay, they stay
    todo, vocabulary = run.round()
    losses = [loss_of(pretrainer, todo[0], vocabulary, deeper, 0) for pretrainer in (first.averaged, run.pretrainer)]
    torch.testing.assert_close(*losses)
    train(run)
    assert all(value.any() for value in run.averaged.adapter.layers.parameters())
    assert f"start: {corpus / 'first'}" in (corpus / "deeper" / "card.md").read_text()
    shutil.rmtree(corpus / "first")  # what has begun needs it no more
    resumed = make_run(corpus, tokenizer, embeddings, "deeper", deeper)
    for name, value in run.pretrainer.state_dict().items():
        assert torch.equal(resumed.pretrainer.state_dict()[name], value), name


def spoilt(averaged):
    return averaged | {"adapter.fc1.weight": averaged["adapter.fc1.weight"] * torch.nan}


@pytest.mark.parametrize(
    ("recipe", "damage", "message"),
    [
        (RECIPE, lambda path: path.unlink(), "cannot be used"),
        (RECIPE, lambda path: path.write_bytes(b""), "cannot be used"),
        (RECIPE, lambda path: path.write_bytes(b"nothing of the kind"), "cannot be used"),
        (RECIPE, lambda path: torch.save([1], path), "cannot be used"),
        (RECIPE, lambda path: torch.save({"averaged": 3}, path), "cannot be used"),
        (RECIPE, lambda path: torch.save({"averaged": spoilt(torch.load(path)["averaged"])}, path), "NaN or infinite"),
        (replace(RECIPE, inner_size=8), None, "cannot be used"),
        (replace(RECIPE, sharpness=0.5), None, "trained with other embeddings"),
    ],
)
def test_a_run_that_cannot_be_begun_with_is_named(corpus, tokenizer, embeddings, recipe, damage, message):
    make_run(corpus, tokenizer, embeddings, "other").save()
    if damage is not None:
        damage(corpus / "other" / "checkpoint.pt")
    with pytest.raises(BadInput, match=f"--start .*other.*{message}"):
        make_run(corpus, tokenizer, embeddings, recipe=replace(recipe, start=str(corpus / "other")))


def test_a_run_with_more_layers_or_other_embeddings_is_not_begun_with(corpus, tokenizer, embeddings):
    make_run(corpus, tokenizer, embeddings, "other", replace(RECIPE, layers=1)).save()
    begun = replace(RECIPE, start=str(corpus / "other"))
    with pytest.raises(BadInput, match=r"differs in adapter\.layers\.0"):
        make_run(corpus, tokenizer, embeddings, recipe=begun)
    with pytest.raises(BadInput, match="trained with other embeddings"):
        make_run(corpus, tokenizer, embeddings + 0.1, recipe=replace(begun, layers=1))


def test_a_corpus_that_grows_is_taken_in_at_the_next_round(corpus, tokenizer, embeddings):
    run = make_run(corpus, tokenizer, embeddings)
    before, _ = run.round()
    fill(corpus / "corpus", tokenizer, 40, 60)
    during, _ = run.round()
    run.counts, run.epoch = {}, 1
    after, _ = run.round()
    assert [[c.row["key"] for c in b] for b in before] == [[c.row["key"] for c in b] for b in during]
    assert [sum(map(len, found)) for found in (before, after)] == [40, 60]


def test_the_exported_adapter_hears_unscaled_states(embeddings):
    torch.manual_seed(0)
    scale = torch.rand(SIZE) + 0.5
    pretrainer = CtcPretrainer(RECIPE, embeddings, scale, torch.zeros(TEXT_SIZE))
    adapter = CtcAdapter(SIZE, TEXT_SIZE, RECIPE.inner_size, RECIPE.kernel_sizes, TOKENS)
    exported = pretrainer.exported(torch.tensor([3, 7]))
    adapter.load_state_dict({name.removeprefix("adapter."): value for name, value in exported.items()})
    assert adapter.spells.nonzero()[:, 0].tolist() == [3, 7]
    states, lengths = torch.randn(3, 37, SIZE), torch.tensor([37, 12, 25])
    expected, counts = pretrainer.frames(states, lengths)
    frames, mask = adapter(states, lengths)
    assert torch.equal(mask.sum(1), counts)
    torch.testing.assert_close(frames, expected, atol=2e-5, rtol=1e-4)


def test_scores_are_squared_distances(embeddings):
    pretrainer = CtcPretrainer(RECIPE, embeddings, torch.ones(SIZE), torch.zeros(TEXT_SIZE))
    frames, tokens = torch.randn(2, 3, TEXT_SIZE), torch.tensor([5, 9, 200])
    vectors = torch.cat([torch.zeros(1, TEXT_SIZE), on_sphere(embeddings, embeddings)[tokens]])
    distances = torch.cdist(frames.flatten(0, 1), vectors).square().reshape(2, 3, 4)
    scores = pretrainer.scores(frames, tokens)
    torch.testing.assert_close(
        scores - scores[..., :1], -RECIPE.sharpness * (distances - distances[..., :1]), atol=1e-4, rtol=1e-4
    )


def test_with_all_tokens_as_negatives_the_loss_is_plain_ctc(corpus, tokenizer, embeddings, monkeypatch):
    monkeypatch.setattr(spelling, "augment", lambda states, *_: states)
    recipe = Recipe(**{f: getattr(RECIPE, f) for f in RECIPE.__slots__} | {"negatives": TOKENS})
    run = make_run(corpus, tokenizer, embeddings, recipe=recipe)
    todo, _ = run.round()
    batch, every = todo[0], torch.arange(TOKENS)
    states = torch.nn.utils.rnn.pad_sequence([c.cache[c.row["key"]] for c in batch], batch_first=True)
    frames, counts = run.pretrainer.frames(states, torch.tensor([c.frames for c in batch]))
    expected = torch.nn.functional.ctc_loss(
        run.pretrainer.scores(frames, every).log_softmax(-1).transpose(0, 1),
        torch.tensor([i + 1 for c in batch for i in c.ids]),
        counts,
        torch.tensor([len(c.ids) for c in batch]),
        reduction="sum",
    ) / sum(len(c.ids) for c in batch)
    torch.testing.assert_close(loss_of(run.pretrainer, batch, every, recipe, 0), expected, rtol=1e-4, atol=1e-4)


def test_batches_hold_every_clip_once_within_their_budget(corpus, tokenizer):
    clips, _ = Corpora([corpus / "corpus", corpus / "corpus"], tokenizer).clips()
    found = batches(clips, RECIPE, 3)
    assert sorted(c.row["key"] for b in found for c in b) == sorted(c.row["key"] for c in clips)
    assert all(len(b) * max(c.frames for c in b) <= RECIPE.batch_frames for b in found)
    assert [[c.row["key"] for c in b] for b in found] != [[c.row["key"] for c in b] for b in batches(clips, RECIPE, 4)]


def test_word_error_counts_by_set(corpus, tokenizer, embeddings, monkeypatch):
    clips, _ = Corpora([corpus / "check"], tokenizer).clips()
    monkeypatch.setattr(spelling, "transcribe_ctc", lambda _s, clips, *_: [c.row["text"] for c in clips[:-1]] + [""])
    last, words = len(clips[-1].row["text"].split()), sum(len(c.row["text"].split()) for c in clips)
    assert word_error(None, clips, None, None) == {"validation made-up": round(last / words, 4)}


def test_without_clips_the_message_says_what_to_do(tmp_path, tokenizer, embeddings):
    fill(tmp_path / "corpus", tokenizer, 0, 0)
    fill(tmp_path / "check", tokenizer, 0, 0)
    with pytest.raises(BadInput, match="wide-corpus"):
        make_run(tmp_path, tokenizer, embeddings)
