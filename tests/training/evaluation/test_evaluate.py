"""`evaluate`: the figures against sums by hand, and two paths over the same recordings."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch

from assistant.events import EMOTIONS
from model.errors import BadInput
from model.nn.speech_llm import SPEECH_ID
from model.nn.transcribe import Transcript
from tests.support.tiny import tiny_checkpoint
from tests.training.support.tiny_run import make_data
from training.__main__ import main
from training.commands import evaluate_command
from training.data.batches import IGNORED
from training.data.eval_cases import evenly_spaced, read_cases
from training.data.prepare import PreparedRows
from training.evaluation.evaluate import REPEAT, Subject, _agreement, _encoded, _frames, calibration, compare, examine
from training.evaluation.evaluate import continuations as measure
from training.metrics.wer import word_errors


@pytest.fixture(scope="module")
def subject():
    return Subject.of(tiny_checkpoint(window="trimmed"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, subject):
    folder = tmp_path_factory.mktemp("evaluate")
    subject.checkpoint.save(folder / "start")
    return make_data(folder, folder / "start")


@pytest.fixture(scope="module")
def cases(data, subject):
    return read_cases(data, subject.writer.chat)[0]


class Recogniser:
    """Writes the same words whatever it hears."""

    encoder = None

    def encode(self, samples):
        return [(samples, 1.0)]

    def transcribe(self, encoded, seconds, language):
        return Transcript("open the door", "en")


@torch.inference_mode()
def test_losses_of_continuations_are_those_of_whole_rows(subject, cases):
    """Each row by itself through the model as a whole, labels shifted by hand."""
    model = subject.checkpoint.model
    sums = dict.fromkeys(("loss_speech", "loss_text", "loss_nothing"), 0.0)
    kept = {"speech": 0.0, "nothing": 0.0}
    tokens = 0
    for case in cases:
        frames, _ = _frames(subject, _encoded(subject, case))
        ids, logits = case.ids, {}
        for name, words, instruction in (
            ("speech", [SPEECH_ID] * len(frames), ids.speech_instruction),
            ("text", list(ids.text), ids.text_instruction),
            ("nothing", [], ids.speech_instruction),
        ):
            row = [*ids.opening, *instruction, *words, *ids.closing, *ids.answer]
            output = model(torch.tensor([row]), speech=frames if name == "speech" else None).logits[0]
            logits[name] = output[-len(ids.answer) - 1 : -1].log_softmax(-1)
            sums[f"loss_{name}"] -= logits[name][range(len(ids.answer)), ids.answer].sum().item()
        for name in kept:
            kept[name] += (logits["text"].exp() * (logits["text"] - logits[name])).sum().item()
        tokens += len(ids.answer)
    found = measure(subject, cases, [_encoded(subject, case) for case in cases])
    assert found["continuation_tokens"] == tokens
    for name, total in sums.items():
        assert found[name] == pytest.approx(total / tokens, rel=1e-4)
    assert found["divergence_speech"] == pytest.approx(kept["speech"] / tokens, rel=1e-3)
    assert found["divergence_share"] == pytest.approx(kept["speech"] / kept["nothing"], rel=1e-3)


def test_emotions_and_replies_are_those_of_the_engine(subject, cases):
    figures, rows = examine(subject, cases, 2)
    labelled = [case for case in cases if case.ids.emotion != IGNORED]
    from assistant.events import Spoken

    readings = [subject.engine.hear(Spoken(case.samples)).reading.strongest for case in labelled]
    right = sum(EMOTIONS[case.ids.emotion] == reading for case, reading in zip(labelled, readings, strict=True))
    assert figures["n"] == len(labelled) == 6
    assert figures["accuracy"] == right / len(labelled)
    assert figures["interval_95"][0] <= figures["accuracy"] <= figures["interval_95"][1]
    assert sum(map(sum, figures["confusion"])) == len(labelled)
    assert [row["said"] for row in rows] == [cases[0].transcript, cases[-1].transcript]
    assert figures["repeated"] == 2


def test_a_model_that_repeats_its_text_is_said_to(subject, cases, monkeypatch):
    def echo(self, prompts):
        texts = [self.checkpoint.tokenizer.decode(prompt.prefix) for prompt in prompts]
        return [text.rsplit(REPEAT, 1)[-1] if REPEAT in text else "I see." for text in texts]

    monkeypatch.setattr(Subject, "replies", echo)
    figures, _ = examine(subject, cases, 3)
    assert figures["repeat_word_error_text"] == 0
    assert figures["repeat_word_error"] == 1  # nothing of speech stands in the ids
    assert figures["reply_agreement"] == 1
    assert figures["most_common_opening_share"] == 1


def test_two_paths_over_the_same_recordings(cases):
    checkpoint = tiny_checkpoint(window="trimmed")
    checkpoint.transcriber = Recogniser()
    found = compare(Subject.of(checkpoint), cases[:2])
    words = [case.transcript for case in cases[:2]]
    assert found["recordings"] == 2
    assert found["speech"]["emotion_accuracy"] == found["transcript"]["emotion_accuracy"]  # one head
    assert found["transcript"]["first_token_ms_median"] > 0
    assert "transcript_word_error" not in found["speech"]
    right = sum(text == "open the door" for text in words)
    assert (found["transcript"]["transcript_word_error"] == 0) == (right == 2)
    if right:
        assert found["transcript"]["reply_agreement"] >= right / 2
    assert checkpoint.model.config.path == "speech"


def test_compare_says_what_it_lacks(subject, cases):
    with pytest.raises(BadInput, match="recogniser"):
        compare(subject, cases)
    checkpoint = tiny_checkpoint(window="trimmed")
    checkpoint.transcriber = Recogniser()
    with pytest.raises(BadInput, match="feature cache is not enough"):
        compare(Subject.of(checkpoint), [replace(cases[0], samples=None)])


def test_a_manifest_needs_no_continuations(subject, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000).clip(-1, 1), 16000)
    rows = [
        {"audio": "a.wav", "text": "hello there", "emotion": "sad"},
        {"audio": "missing.wav", "text": "hello", "emotion": "sad"},
        {"audio": "a.wav", "text": "no emotion"},
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases, dropped = read_cases(manifest, subject.writer.chat)
    assert [case.transcript for case in cases] == ["hello there", "no emotion"]
    assert dropped == {str(manifest): {"missing audio": 1}}
    figures, rows = examine(subject, cases, 0)
    assert figures["n"] == 1
    assert "loss_speech" not in figures
    assert rows == []
    manifest.write_text(json.dumps({"audio": "missing.wav", "text": "hello"}))
    with pytest.raises(BadInput, match="no usable row"):
        read_cases(manifest, subject.writer.chat)


def test_cached_states_alone_are_enough(subject, cases):
    encoded = [replace(case, samples=None, encoded=_encoded(subject, case)) for case in cases]
    heard, _ = examine(subject, cases, 0)
    cached, _ = examine(subject, encoded, 0)
    assert cached["confusion"] == heard["confusion"]
    assert cached["loss_speech"] == pytest.approx(heard["loss_speech"], rel=1e-6)


def test_before_and_after_as_table_and_picture(data, subject, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Subject, "load", classmethod(lambda cls, source: subject))
    picture = tmp_path / "picture.svg"
    given = ["evaluate", "after", "--before", "before", "--data", str(data), "--replies", "1", "--limit", "3"]
    assert main([*given, "--picture", str(picture), "--json"]) == 0
    emitted = capsys.readouterr()
    figures = json.loads(emitted.out)
    assert figures["before"]["accuracy"] == figures["accuracy"]
    assert figures["replies"][0]["reply_before"] == figures["replies"][0]["reply"]
    assert "before" in emitted.err
    assert "continuation: loss given speech" in emitted.err
    assert figures["pictures"] == [
        str(picture),
        *(str(tmp_path / f"picture.{name}.svg") for name in ("before", "after")),
    ]
    matrix = "".join(ElementTree.fromstring((tmp_path / "picture.after.svg").read_text("utf-8")).itertext())
    assert "read from the voice" in matrix
    words = "".join(ElementTree.fromstring(picture.read_text("utf-8")).itertext())
    bars = [re.findall(rf"\d\.\d{{3}} {name}", words) for name in ("before", "after")]
    assert len(bars[0]) == len(bars[1]) == 9
    assert f"{figures['loss_text']:.3f} after" in words
    assert main([*given, "--picture", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_evaluate_wants_something_to_evaluate(capsys):
    assert main(["evaluate"]) == 2
    assert "--data" in capsys.readouterr().err


def test_calibration_by_hand():
    found = calibration([(0.95, True), (0.95, False), (0.35, False), (1.0, True)])
    assert [point["n"] for point in found["calibration"]] == [1, 3]
    assert found["calibration_error"] == pytest.approx((0.35 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)


def test_agreement_by_hand():
    assert _agreement(["one two", "a b c d", ""], ["one two", "a b x y z w", ""]) == pytest.approx((1 + 0 + 1) / 3)
    assert _agreement(["a b c d"], ["a b c x"]) == 0.75


@pytest.mark.parametrize(("count", "limit"), [(1, 5), (5, 5), (100, 7), (3, 1)])
def test_cases_are_chosen_evenly(count, limit):
    places = evenly_spaced(count, limit)
    assert places[0] == 0
    assert len(places) == min(count, limit)
    assert len(places) == 1 or places[-1] == count - 1
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_prepared_rows_without_their_split(data, subject):
    assert len(read_cases(data, subject.writer.chat, split="train", limit=5)[0]) == 5
    assert len(PreparedRows(data, "validation")) == 6


def test_the_table_leaves_out_what_was_not_measured():
    table = evaluate_command.as_table({"now": {"accuracy": 0.5, "loss_text": math.pi}})
    assert "0.500" in table
    assert "3.142" in table
    assert "repeated" not in table


@torch.inference_mode()
def test_words_that_an_adapter_spells_are_counted(cases):
    subject = Subject.of(tiny_checkpoint(window="trimmed", adapter_type="spelling"))
    model, tokenizer = subject.checkpoint.model, subject.checkpoint.tokenizer
    model.adapter.spells.zero_()[tokenizer.convert_tokens_to_ids(["Ġthe", "Ġa", "th", "in", "ou", "st"])] = True
    read = []
    for seed, spoken in enumerate(cases[:2]):
        case = replace(spoken, encoded=torch.randn(60, 32, generator=torch.Generator().manual_seed(seed)))
        states = _encoded(subject, case)[None]
        spelt = model.adapter.decode(states, torch.tensor([states.shape[1]]), model.get_input_embeddings())
        read.append(replace(case, transcript=tokenizer.decode(spelt.ids[0])))
    assert examine(subject, read, 0)[0]["spelt_word_error"] == 0
    words = sum(word_errors(case.transcript, "")[1] for case in read)
    assert words > 2
    more = [replace(case, transcript=f"{case.transcript} zebra") for case in read]
    assert examine(subject, more, 0)[0]["spelt_word_error"] == pytest.approx(2 / (words + 2))
