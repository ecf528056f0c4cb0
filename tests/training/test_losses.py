"""The recipe's losses, gradients and steps against the original's (tests/goldens/numeric), and our own layout."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.convert import convert, examine
from model.errors import BadInput
from model.features import encode, encoder_frames, log_mel
from model.speech_llm import SpeechLanguageModel
from tests.tiny import tiny_model
from training import losses as losses_module
from training.batches import IGNORED, TrainingRow, collate
from training.losses import LOSSES, RecipeLosses, cross_entropy, kl_divergence, loss_counts

GOLDENS = Path(__file__).parents[1] / "goldens"
NUMBERS = {
    variant: json.loads((GOLDENS / "numeric" / variant / "losses.json").read_text("utf-8")) for variant in "abcd"
}
VALUES = [(variant, key, value) for variant in "abcd" for key, value in NUMBERS[variant]["values"].items()]
GRADIENTS = [(variant, key) for variant in "abcd" for key in NUMBERS[variant] if key.startswith("grad_")]
STEPS = [(variant, key) for variant in "abcd" for key in NUMBERS[variant] if key.startswith("steps_")]
LORA_NAME = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)\.lora_([ab])")
LORA_MODULES = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
}
ADAPTER_PARTS = {
    "convolutions": "subsampler.conv_layers",
    "norm": "speech_ln",
    "pre_layers": "pre_cif_layers",
    "post_layers": "post_cif_layers",
    "projection": "cif_proj",
    "token_projection": "token_embed_proj",
    "token_head": "lm_head",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Loads a checkpoint by its letter, in fp32; adapter, LoRA and emotion head are trainable, as in the recipe."""
    root = tmp_path_factory.mktemp("converted")

    def load(variant: str) -> SpeechLanguageModel:
        if not (root / variant).exists():
            convert(examine(GOLDENS / "checkpoints" / variant), root / variant)
        model = SpeechLanguageModel.from_pretrained(root / variant, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(("adapter", "emotion_head")) or ".lora_" in name
        return model

    return load


@pytest.fixture(scope="module")
def heard(original):
    """A checkpoint, loaded once, and the rows of its batches with the encoder's states over the whole window."""

    @cache
    def load(variant: str) -> tuple[SpeechLanguageModel, dict[str, list[TrainingRow]]]:
        model = original(variant)
        batches = NUMBERS[variant]["batches"]
        names = {line["audio"] for lines in batches.values() for line in lines}
        with torch.no_grad():
            states = {name: encode(model.encoder, recording(name)[0][None])[-1][0] for name in names}
        return model, {
            batch: [
                replace(row, features=None, encoded=states[line["audio"]])
                for row, line in zip(rows_of(variant, batch), lines, strict=True)
            ]
            for batch, lines in batches.items()
        }

    return load


@cache
def recording(name: str) -> tuple[Tensor, int]:
    samples, _ = soundfile.read(GOLDENS / "audio" / f"{name}.wav", dtype="float32")
    return log_mel(WhisperFeatureExtractor(), samples, trimmed=False)[0], encoder_frames(len(samples))


@cache
def rows_of(variant: str, name: str) -> list[TrainingRow]:
    """The rows of one of the original's collated batches."""
    stored = load_file(GOLDENS / "numeric" / variant / f"loss_batch_{name}.safetensors")
    rows = []
    for at, line in enumerate(NUMBERS[variant]["batches"][name]):
        features, frames = recording(line["audio"])
        opening, speech_instruction, text_instruction, text, suffix = (
            stored[f"{segment}_ids"][at][stored[f"{segment}_mask"][at].bool()].tolist()
            for segment in ("start", "audio_instruction", "instruction", "input", "suffix")
        )
        closing = len(suffix) - int((stored["suffix_labels"][at] != IGNORED).sum())
        rows.append(
            TrainingRow(
                opening=opening,
                speech_instruction=speech_instruction,
                text_instruction=text_instruction,
                text=text,
                closing=suffix[:closing],
                answer=suffix[closing:],
                emotion=int(stored["emotion_labels"][at]),
                encoder_frames=frames,
                features=features,
            )
        )
    return rows


def under_original_names(model: SpeechLanguageModel, *, gradients: bool) -> dict[str, Tensor]:
    """What is trainable, or its gradients, by the original's names, q, k and v fused as there."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if not parameter.requires_grad or tensor is None:
            continue
        if match := LORA_NAME.fullmatch(name):
            layer, module, which = match.groups()
            fused = LORA_MODULES.get(module, "attn.c_attn")
            key = f"qwen_model.model.transformer.h.{layer}.{fused}.lora_{which.upper()}.default.weight"
        elif name.startswith("adapter."):
            _, part, rest = name.split(".", 2)
            key = f"adapter.{ADAPTER_PARTS.get(part, part)}.{rest}"
        else:
            key = "hidden2emotion.weight"
        found.setdefault(key, []).append(tensor)
    # The original's q, k and v share their A; its gradient is the sum of ours.
    return {key: torch.cat(parts) if "lora_B" in key else sum(parts) for key, parts in found.items()}


def close(ours: Tensor, theirs: float | Tensor, relative: float) -> bool:
    return bool((ours.detach() - theirs).abs() <= relative * abs(theirs))


# ---- the original's numbers


@pytest.mark.parametrize(("variant", "key", "value"), VALUES, ids=[f"{v}-{k}" for v, k, _ in VALUES])
@torch.no_grad()
def test_every_loss_of_the_original(variant: str, key: str, value: float | str, heard) -> None:
    mode, name, losses = key.split("/")
    losses = losses.split(",")
    model, batches = heard(variant)
    batch = collate(batches[name])
    # One row alone has no padding: there our layout is the original's.
    for legacy in [True, False] if name == "one" else [True]:
        recipe = RecipeLosses(model, losses, legacy_batching=legacy)
        result = recipe.train(mode == "train")(batch)
        assert list(result) == ["loss", *losses]
        if isinstance(value, float):
            assert close(result["loss"], value, 1e-4)
            continue
        # Where the original gives up, because in evaluation it makes as many frames as it hears and compares them with
        # the transcript's tokens, we hear once more with the transcript's count, as training does.
        assert "mismatched shape" in value
        assert close(result["input_kl"], recipe.train()(batch)["input_kl"], 1e-6)
        for loss in set(losses) - {"input_kl"}:
            assert close(result[loss], NUMBERS[variant]["values"][f"eval/{name}/{loss}"], 1e-4)
        assert close(result["loss"], sum(result[loss] for loss in losses), 1e-6)


@pytest.mark.parametrize(("variant", "key"), GRADIENTS)
def test_every_gradient_of_the_original(variant: str, key: str, original) -> None:
    golden = NUMBERS[variant][key]
    model = original(variant)
    recipe = RecipeLosses(model, golden["loss_names"].split(","), legacy_batching=True).train(golden["mode"] == "train")
    loss = recipe(collate(rows_of(variant, golden["batch"])))["loss"]
    loss.backward()
    assert close(loss, golden["loss"], 1e-4)
    gradients = under_original_names(model, gradients=True)
    assert gradients.keys() == golden["grad_norms"].keys()
    assert under_original_names(model, gradients=False).keys() - gradients == set(golden["trainable_without_grad"])
    for name, norm in golden["grad_norms"].items():
        assert close(gradients[name].norm(), norm, 1e-3), name
    prefix = key.removeprefix("grad_") + "."
    path = GOLDENS / "numeric" / variant / "grads.safetensors"  # some gradients complete, of all variants but c
    complete = load_file(path) if path.exists() else {}
    assert complete or variant == "c"
    for name, gradient in complete.items():
        ours = gradients[name.removeprefix(prefix)]
        assert (ours - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize(("variant", "key"), STEPS)
def test_five_steps_of_the_original(variant: str, key: str, original, heard) -> None:
    golden = NUMBERS[variant][key]
    model = original(variant)
    for layer in model.language_model.model.layers:
        if model.config.lora_rank:
            # One A for q, k and v, as in the original: AdamW treats three copies otherwise than their sum.
            attention = layer.self_attn
            attention.k_proj.lora_a = attention.v_proj.lora_a = attention.q_proj.lora_a
    recipe = RecipeLosses(model, golden["loss_names"].split(","), legacy_batching=True).train(golden["mode"] == "train")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = golden["optimizer"]
    optimiser = torch.optim.AdamW(
        trainable,
        lr=settings["lr"],
        betas=settings["betas"],
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    batch = collate(heard(variant)[1][golden["batch"]])
    losses, norms = [], []
    for _ in golden["grad_norms_before_clip"]:
        optimiser.zero_grad()
        loss = recipe(batch)["loss"]
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trainable, settings["clip"]).item())
        optimiser.step()
    losses.append(recipe(batch)["loss"].item())
    assert losses == pytest.approx(golden["losses"], rel=1e-4)
    assert norms == pytest.approx(golden["grad_norms_before_clip"], rel=1e-3)
    final = {name: float(value.norm()) for name, value in under_original_names(model, gradients=False).items()}
    assert final == pytest.approx(golden["final_param_norms"], rel=1e-4)


# ---- our own layout

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
    teacher = recipe._teacher(batch)
    assert not teacher.hidden.requires_grad
    first_layer = [gradient for name, gradient in gradients_of(recipe, own_rows()).items() if ".0.mlp.up_proj" in name]
    assert len(first_layer) == 2
    assert all(gradient.any() for gradient in first_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.add_(1)
    assert torch.equal(recipe._teacher(batch).hidden, teacher.hidden) == (kind == "conv")


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
