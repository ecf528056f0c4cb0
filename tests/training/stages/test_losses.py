"""The recipe's losses, gradients and steps in our own layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from model.audio.features import encode
from model.errors import BadInput
from model.nn.speech_llm import SpeechLanguageModel
from tests.support.tiny import tiny_model
from tests.training.support.original import close
from training.data.batches import IGNORED, TrainingRow, collate
from training.stages import losses as losses_module
from training.stages.losses import LOSSES, RecipeLosses, cross_entropy, kl_divergence, loss_counts

WIDTHS = (3000, 700, 500)


@cache
def own_rows() -> tuple[TrainingRow, ...]:
    """Three unlike rows for the tiny model, each in an encoder window of its own width."""
    draw = torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 250, (count,), generator=draw).tolist()

    return tuple(
        TrainingRow(
            opening=ids(4),
            speech_instruction=ids(3 * number),
            text_instruction=ids(5 - number),
            text=ids(3 + 4 * number),
            closing=ids(2),
            answer=ids(7 - 2 * number),
            emotion=(1, IGNORED, 4)[number],
            encoder_frames=(40, 210, 113)[number],
            features=torch.randn(80, WIDTHS[number], generator=draw),
        )
        for number in range(3)
    )


def own_model(kind: str) -> SpeechLanguageModel:
    config = {"adapter_type": "cformer", "cformer_pre_layers": 1, "cformer_post_layers": 1} if kind == "cformer" else {}
    model = tiny_model(**config, lora_scope="global" if kind == "global" else "audio")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("adapter", "emotion_head")) or ".lora_" in name
    torch.nn.init.normal_(model.emotion_head.weight)
    return model


def losses_of(kind: str) -> tuple[str, ...]:
    return LOSSES if kind == "cformer" else LOSSES[:3]


def gradients_of(recipe: RecipeLosses, rows: tuple[TrainingRow, ...]) -> dict[str, Tensor]:
    recipe.zero_grad()
    torch.manual_seed(3)
    recipe(collate(rows))["loss"].backward()
    return {name: p.grad for name, p in recipe.model.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["conv", "global", "cformer"])
@torch.no_grad()
def test_a_batch_is_the_weighted_mean_of_its_rows(kind: str, training: bool) -> None:
    model = own_model(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    recipe = RecipeLosses(model, losses_of(kind)).train(training)
    whole = collate(own_rows())
    together, counts = recipe(whole), loss_counts(whole)
    alone = [(recipe(collate([row])), loss_counts(collate([row]))) for row in own_rows()]
    for name in losses_of(kind):
        mean = sum(losses[name] * count[name] for losses, count in alone) / sum(count[name] for _, count in alone)
        assert close(together[name], mean, 1e-5), name
    # Accumulated over parts with the counts of the whole, the parts' losses sum to the whole's.
    parts = [recipe(collate(rows), counts)["loss"] for rows in (own_rows()[:2], own_rows()[2:])]
    assert close(sum(parts), together["loss"], 1e-5)


@pytest.mark.parametrize("kl_at", ["tokens", "predictions"])
@torch.no_grad()
def test_losses_from_whole_logits(kl_at: str) -> None:
    """The same from the model's own forward, row by row, every logit at once."""
    model = own_model("conv")
    expected = {"response_ce": 0.0, "response_kl": 0.0}
    tokens = 0
    for row in own_rows():
        spoken = model.hear(row.features[None], torch.tensor([row.encoder_frames]))
        prompt = [*row.opening, *row.speech_instruction, *[-1] * len(spoken.frames[0]), *row.closing]
        read = [*row.opening, *row.text_instruction, *row.text, *row.closing]
        student = model(torch.tensor([[*prompt, *row.answer]]), speech=spoken.frames[0]).logits[0]
        teacher = model(torch.tensor([[*read, *row.answer]])).logits[0]
        answer = len(row.answer)
        tokens += answer
        expected["response_ce"] += cross_entropy(student[-answer - 1 : -1], torch.tensor(row.answer))
        at = slice(-answer, None) if kl_at == "tokens" else slice(-answer - 1, -1)
        p, log_q = (teacher[at] / 2).softmax(-1), (student[at] / 2).log_softmax(-1)
        expected["response_kl"] += (p * (p.log() - log_q)).sum()
    result = RecipeLosses(model, list(expected), kl_at=kl_at)(collate(own_rows()))
    for name, total in expected.items():
        assert close(result[name], total / tokens, 1e-5), name


@pytest.mark.parametrize("kind", ["conv", "cformer"])
def test_cached_encoder_states_change_nothing(kind: str) -> None:
    model = own_model(kind)
    recipe = RecipeLosses(model, losses_of(kind)).train()
    with torch.no_grad():
        cached = tuple(
            replace(row, features=None, encoded=encode(model.encoder, row.features[None])[-1][0, : row.encoder_frames])
            for row in own_rows()
        )
    assert_equal_gradients(gradients_of(recipe, cached), gradients_of(recipe, own_rows()))


@pytest.mark.parametrize("kind", ["conv", "global", "cformer"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model = own_model(kind)
    recipe = RecipeLosses(model, losses_of(kind)).train()  # with LoRA's dropout
    plain = gradients_of(recipe, own_rows())
    model.activation_checkpointing_enable()
    runs: list[int] = []
    model.language_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    assert_equal_gradients(gradients_of(recipe, own_rows()), plain)
    assert len(runs) == 3  # teacher, student, and the student once more


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("kind", ["conv", "cformer"])
def test_chunks_of_logits_change_nothing(kind: str, trained_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = own_model(kind)
    recipe = RecipeLosses(model, losses_of(kind)).train()
    head = model.get_output_embeddings()
    head.weight.requires_grad = trained_head
    plain = gradients_of(recipe, own_rows())
    with torch.no_grad():
        losses = recipe.eval()(collate(own_rows()))
    monkeypatch.setattr(losses_module, "LOGITS_AT_ONCE", 4 * head.out_features)
    sizes: list[int] = []
    head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert_equal_gradients(gradients_of(recipe.train(), own_rows()), plain)
    assert trained_head or max(sizes) == 4
    with torch.no_grad():
        for name, loss in recipe.eval()(collate(own_rows())).items():
            assert close(loss, losses[name], 1e-5), name


@torch.no_grad()
def test_logits_only_where_a_loss_reads_them() -> None:
    model = own_model("conv")
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    RecipeLosses(model, ["input_er"])(collate(own_rows()))
    assert sizes == []
    RecipeLosses(model, ["response_ce"])(collate(own_rows()))
    assert sizes == [sum(len(row.answer) for row in own_rows())]


@pytest.mark.parametrize("kind", ["conv", "global"])
def test_the_teacher_has_no_gradient_and_lora_only_as_its_scope_says(kind: str) -> None:
    model = own_model(kind)
    recipe = RecipeLosses(model, ["response_kl"])
    batch = collate(own_rows())
    teacher = recipe.teacher(batch)
    assert not teacher.hidden.requires_grad
    first_layer = [gradient for name, gradient in gradients_of(recipe, own_rows()).items() if ".0.mlp.up_proj" in name]
    assert len(first_layer) == 2
    assert all(gradient.any() for gradient in first_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.add_(1)
    assert torch.equal(recipe.teacher(batch).hidden, teacher.hidden) == (kind == "conv")


def test_rows_without_emotion_add_nothing() -> None:
    model = own_model("conv")
    recipe = RecipeLosses(model, ["input_er"])
    labelled = tuple(row for row in own_rows() if row.emotion != IGNORED)
    assert close(recipe(collate(own_rows()))["loss"], recipe(collate(labelled))["loss"], 1e-5)
    nothing = recipe(collate([replace(row, emotion=IGNORED) for row in own_rows()]))["loss"]
    assert nothing.item() == 0
    nothing.backward()
    assert not model.emotion_head.weight.grad.any()


def test_bfloat16_stays_near() -> None:
    model = own_model("conv")
    recipe = RecipeLosses(model, losses_of("conv"))
    exact = recipe(collate(own_rows()))["loss"]
    model.bfloat16()
    assert close(recipe(collate(own_rows()))["loss"], exact, 0.05)


def test_kl_divergence_by_hand() -> None:
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    p = torch.tensor([1.0, 0.0]).softmax(-1)  # the logits divided by T = 2
    assert close(kl_divergence(teacher, student), (p * (p / p.flip(0)).log()).sum(), 1e-6)
    assert kl_divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("conv", ["response_ce", "surprise"], "Unknown losses \\['surprise'\\]"),
        ("conv", [], "Unknown losses"),
        ("conv", ["cif"], "CFormer"),
        ("conv", ["input_kl", "response_kl"], "CFormer"),
    ],
)
def test_losses_that_a_model_cannot_have(kind: str, names: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RecipeLosses(own_model(kind), names)


def test_checkpoints_without_adapter_or_head() -> None:
    with pytest.raises(BadInput, match="no adapter"):
        RecipeLosses(tiny_model(adapter_kernel_sizes=[], emotion_source="none"), ["response_ce"])
    with pytest.raises(BadInput, match="emotion head"):
        RecipeLosses(tiny_model(emotion_source="none"), ["input_er"])


def test_a_cformer_needs_transcripts() -> None:
    recipe = RecipeLosses(own_model("cformer"), ["cif"])
    with pytest.raises(BadInput, match="transcripts"):
        recipe(collate([own_rows()[0], replace(own_rows()[1], text=[])]))
