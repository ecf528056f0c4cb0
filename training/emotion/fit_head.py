"""`python -m training fit-head`: the emotion head on frozen encoder frames and prosody, fitted and measured.

A logistic regression and small networks on each clip's mean frame, whose logits' mean is one head. The layers are
chosen by cross-validation of regressions over the voices and engines of the split "train"; temperature and threshold
are set on "calibrate"; nothing is fitted on the splits "test" (unseen voices), "engine" (unseen synthesizer) and
"human": they are measured for the card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperModel

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples
from model.audio.features import encode, encoder_frames, log_mel
from model.audio.prosody import PROSODY_FEATURES, prosody_frames
from model.errors import BadInput, WeightsMissing
from model.files import replacing, write_atomically
from model.nn.emotion import EmotionHead
from training.emotion.card import write_card

LAYER_CHOICES = ((1,), (2,), (3,), (4,), (6,), (1, 2, 3), (2, 3, 4))
ENCODER_L2, PROSODY_L2 = 0.03, 0.003
"""Penalties of a standardised feature's weights in a regression."""
NETWORKS, HIDDEN = 4, 256
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 40, 256, 1e-3, 0.1
DROPPED = (0.1, 0.3)
"""Shares of inputs and of hidden units that are left out at every step."""
FRAME_GROUP = 4
MOST_ERROR, LEAST_COVERAGE = 0.20, 0.50


@dataclass(frozen=True, slots=True)
class Clips:
    """The corpus in mean frames: manifest rows, states [n, layers, D], prosody [n, F], labels [n]."""

    rows: list[dict[str, Any]]
    states: NDArray[np.float32]
    prosody: NDArray[np.float32]
    labels: NDArray[np.int64]

    def features(self, layers: tuple[int, ...]) -> Tensor:
        """[n, D + F]: the mean of these layers, then prosody."""
        states = self.states[:, list(layers)].mean(1)
        return torch.from_numpy(np.concatenate([states, self.prosody], 1))

    def where(self, test: Callable[[dict[str, Any]], bool]) -> NDArray[np.bool_]:
        """The rows that pass `test`, as a mask [n]."""
        return np.array([test(row) for row in self.rows])


def _manifest(corpus: Path) -> list[dict[str, Any]]:
    path = corpus / "manifest.jsonl"
    if not path.is_file():
        raise BadInput(f"{corpus} has no manifest.jsonl: run python -m training corpus {corpus}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows, 1):
        if row.get("emotion") not in EMOTIONS:
            raise BadInput(f"{path}:{number}: unknown emotion {row.get('emotion')!r}: use {', '.join(EMOTIONS)}")
    return sorted(rows, key=lambda row: str(row["audio"]))  # the order in which workers finished means nothing


def _read_clip(path: Path) -> Samples:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise BadInput(f"{path}: the corpus must be mono at {SAMPLE_RATE} Hz: build it again")
    return np.asarray(samples, np.float32)


@torch.inference_mode()
def mean_states(corpus: Path, audio: list[str], whisper: Path) -> NDArray[np.float32]:
    """The mean encoder frame of each clip and layer, [n, layers + 1, D]; kept in corpus/states.npz, every 500 clips.

    Raises:
        WeightsMissing: no Whisper in `whisper`.
    """
    cache = corpus / "states.npz"
    known: dict[str, NDArray[np.float32]] = {}
    if cache.is_file():
        with np.load(cache) as kept:
            known = dict(zip(kept["audio"].tolist(), kept["states"], strict=True))
    missing = [name for name in audio if name not in known]
    if missing:
        if not (whisper / "config.json").is_file():
            raise WeightsMissing(f"{whisper} holds no Whisper model: pass --whisper DIR")
        encoder = WhisperModel.from_pretrained(whisper, dtype=torch.float32).encoder.eval()
        extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    for number, name in enumerate(track(missing, "frames", console=Console(stderr=True), transient=True), 1):
        samples = _read_clip(corpus / name)
        states = encode(encoder, log_mel(extractor, samples, trimmed=True))
        known[name] = torch.cat(states)[:, : encoder_frames(len(samples))].mean(1).numpy()
        if number % 500 == 0 or number == len(missing):
            with replacing(cache) as partial, partial.open("wb") as file:
                np.savez(file, audio=list(known), states=np.stack(list(known.values())))
    return np.stack([known[name] for name in audio])


def read_corpus(corpus: Path, whisper: Path) -> Clips:
    """The corpus in mean frames.

    Raises:
        BadInput: no manifest, an unknown emotion in it, or a clip that is not mono at 16 kHz.
        WeightsMissing: no Whisper in `whisper`.
    """
    rows = _manifest(corpus)
    audio = [row["audio"] for row in rows]
    states = mean_states(corpus, audio, whisper)
    prosody = [
        prosody_frames(_read_clip(corpus / name)).mean(0)
        for name in track(audio, "prosody", console=Console(stderr=True), transient=True)
    ]
    return Clips(rows, states, np.stack(prosody), np.array([EMOTIONS.index(row["emotion"]) for row in rows]))


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted map from raw features: logits = (x - centre) weight.T + offset."""

    weight: Tensor
    centre: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, 5] of features [n, D]."""
        return (features - self.centre) @ self.weight.T + self.offset


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and spread 1, the centre and the scale that make them so."""
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-4)
    return (features - centre) / scale, centre, scale


def _balance() -> Tensor:
    """Neutral clips are twice the others'; at 0.6 each, neutral stays a little the likeliest class."""
    weights = torch.ones(len(EMOTIONS))
    weights[0] = 0.6
    return weights


def fit_logistic(features: Tensor, labels: Tensor, l2: Tensor, *, steps: int) -> Fit:
    """Multinomial logistic regression on standardised features by L-BFGS.

    Args:
        features: [n, D].
        labels: int64 [n].
        l2: [D], the penalty on each standardised feature's weights (mean loss + sum l2 w^2).
        steps: maximum iterations.
    """
    inputs, centre, scale = _standardised(features)
    weight = torch.zeros(len(EMOTIONS), inputs.shape[1], requires_grad=True)
    offset = torch.zeros(len(EMOTIONS), requires_grad=True)
    balance = _balance()
    optimiser = torch.optim.LBFGS([weight, offset], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weight.T + offset, labels, balance)
        loss = loss + (l2 * weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Fit((weight / scale).detach(), centre, offset.detach())


def fit_network(features: Tensor, labels: Tensor, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """Train a network with one hidden layer on standardised features by AdamW; return its two layers.

    With dropout and mixup (Zhang et al. 2018).

    Args:
        features: [n, D].
        labels: int64 [n].
        seed: of all random numbers.
    """
    targets = nn.functional.one_hot(labels, len(EMOTIONS)) * _balance()
    batch = min(BATCH, len(labels))
    steps = len(labels) // batch
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        inner, outer = nn.Linear(features.shape[1], HIDDEN), nn.Linear(HIDDEN, len(EMOTIONS))
        network = nn.Sequential(nn.Dropout(DROPPED[0]), inner, nn.ReLU(), nn.Dropout(DROPPED[1]), outer)
        optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * steps)
        for _ in range(EPOCHS):
            order = torch.randperm(len(labels))
            for rows in order[: steps * batch].split(batch):
                others, share = rows[torch.randperm(batch)], torch.rand(batch, 1)
                mixed = share * features[rows] + (1 - share) * features[others]
                wanted = share * targets[rows] + (1 - share) * targets[others]
                loss = -(wanted * torch.log_softmax(network(mixed), 1)).sum(1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return inner, outer


def fit_together(features: Tensor, labels: Tensor, l2: Tensor) -> EmotionHead:
    """The head whose logits are the mean of a regression's and of `NETWORKS` networks', rounded to 16 bits.

    Networks are more accurate on synthetic voices; but alone they read calm people as surprised, which the regression
    does not.

    Args:
        features: [n, D].
        labels: int64 [n].
        l2: of the regression, see `fit_logistic`.

    Raises:
        BadInput: numbers that 16 bits cannot represent.
    """
    regression = fit_logistic(features, labels, l2, steps=200)
    inputs, centre, scale = _standardised(features)
    seeds = track(range(NETWORKS), "networks", console=Console(stderr=True), transient=True)
    inner, outer = zip(*(fit_network(inputs, labels, seed) for seed in seeds), strict=True)
    head = EmotionHead(features.shape[1], hidden=NETWORKS * HIDDEN)
    head.load_state_dict(
        {
            "weight": regression.weight / 2,
            "inner.weight": torch.cat([layer.weight for layer in inner]) / scale,
            "inner.bias": torch.cat([layer.bias for layer in inner]),
            "outer.weight": torch.cat([layer.weight for layer in outer], 1) / (2 * NETWORKS),
            "offset": (regression.offset + torch.stack([layer.bias for layer in outer]).mean(0)) / 2,
            "centre": centre,
            "temperature": torch.ones(()),
        }
    )
    head = head.half().float()
    if not all(bool(tensor.isfinite().all()) for tensor in head.state_dict().values()):
        raise BadInput("the head's numbers do not fit in 16 bits: a feature is constant but for a few clips")
    return head


def _balanced(row: dict[str, Any]) -> bool:
    return row["rendition"] in EMOTIONS


def _penalty(clips: Clips) -> Tensor:
    sizes = torch.tensor([clips.states.shape[2], len(PROSODY_FEATURES)])
    return torch.tensor([ENCODER_L2, PROSODY_L2]).repeat_interleave(sizes)


def choose(clips: Clips) -> tuple[tuple[int, ...], dict[str, float]]:
    """The layers that carry best to other speakers, and all scores, from the split "train" alone.

    The score is the mean of two accuracies: on voices left out (4 folds), and on engines left out (one fold each).
    """
    train, judged = clips.where(lambda row: row["split"] == "train"), clips.where(_balanced)
    voices = np.array([row["voice"] for row in clips.rows])
    engines = np.array([row["engine"] for row in clips.rows])
    names = sorted(set(voices[train]))
    groups = [[np.isin(voices, names[k::4]) for k in range(4)]]
    if len(set(engines[train])) > 1:
        groups.append([engines == engine for engine in sorted(set(engines[train]))])
    labels = torch.from_numpy(clips.labels)
    scores = {}
    for layers in track(LAYER_CHOICES, "layers", console=Console(stderr=True), transient=True):
        features = clips.features(layers)
        kinds = []
        for folds in groups:
            right = []
            for left_out in folds:
                inside, outside = train & ~left_out, train & left_out & judged
                fit = fit_logistic(features[inside], labels[inside], _penalty(clips), steps=40)
                right.append(fit(features[outside]).argmax(1) == labels[outside])
            kinds.append(float(torch.cat(right).float().mean()))
        scores[layers] = sum(kinds) / len(kinds)
    return max(scores, key=lambda layers: scores[layers]), {"+".join(map(str, k)): v for k, v in scores.items()}


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """Calibrate: the temperature with the lowest negative log-likelihood (Guo et al. 2017), in steps of 1 %.

    Args:
        logits: [n, 5].
        labels: int64 [n].

    Returns:
        The temperature.
    """
    grid = torch.exp(torch.arange(-1.5, 1.5, 0.01))
    losses = torch.stack([torch.nn.functional.cross_entropy(logits / t, labels) for t in grid])
    return float(grid[losses.argmin()])


def coverage_curve(probabilities: Tensor, labels: Tensor) -> list[tuple[float, float, float]]:
    """(threshold, coverage, error among the covered) at every 5 % of coverage, from 5 to 100 %."""
    confidence, guess = probabilities.max(1)
    order = confidence.argsort(descending=True)
    wrong = (guess != labels)[order].float().cumsum(0)
    counts = [max(1, round(len(labels) * share / 100)) for share in range(5, 101, 5)]
    return [(float(confidence[order[n - 1]]), n / len(labels), float(wrong[n - 1] / n)) for n in counts]


def threshold_of(probabilities: Tensor, labels: Tensor) -> float:
    """Choose the confidence threshold: the largest coverage with an error of at most 20 %, and at least 50 % coverage.

    Args:
        probabilities: [n, 5].
        labels: int64 [n].

    Returns:
        The threshold.
    """
    curve = coverage_curve(probabilities, labels)
    good = [point for point in curve if point[2] <= MOST_ERROR and point[1] >= LEAST_COVERAGE]
    return (good[-1] if good else next(p for p in curve if p[1] >= LEAST_COVERAGE - 1e-9))[0]


def measure(probabilities: Tensor, labels: Tensor, threshold: float) -> dict[str, Any]:
    """Measure emotion recognition.

    Args:
        probabilities: [n, 5].
        labels: int64 [n].
        threshold: confidence below which a reading is "unsure".

    Returns:
        Accuracy with its 95 % interval, unweighted recall, confusion, calibration error, coverage, and error when sure.
    """
    confidence, guess = probabilities.max(1)
    right = (guess == labels).float()
    confusion = torch.zeros(len(EMOTIONS), len(EMOTIONS), dtype=torch.int64)
    confusion.index_put_((labels, guess), torch.ones_like(labels), accumulate=True)
    present = confusion.sum(1) > 0
    recall = (confusion.diagonal() / confusion.sum(1).clamp_min(1))[present]
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [(confidence[bins == b].sum() - right[bins == b].sum()).abs() for b in range(10)]
    covered = confidence >= threshold
    accuracy, half = float(right.mean()), 1.96 * float(right.std(correction=0)) / len(right) ** 0.5
    return {
        "n": len(labels),
        "accuracy": accuracy,
        "interval_95": [max(0.0, accuracy - half), min(1.0, accuracy + half)],
        "unweighted_recall": float(recall.mean()),
        "calibration_error": float(torch.stack(gaps).sum() / len(labels)),
        "coverage": float(covered.float().mean()),
        "error_when_sure": float(1 - right[covered].mean()) if bool(covered.any()) else None,
        "confusion": confusion.tolist(),
    }


def _neutral_speech(probabilities: Tensor, threshold: float) -> dict[str, Any]:
    """What untouched, unacted speech is read as."""
    confidence, guess = probabilities.max(1)
    sure = confidence >= threshold
    shares = {e: float((sure & (guess == i)).float().mean()) for i, e in enumerate(EMOTIONS)}
    return {"n": len(guess), **shares, "unsure": float((~sure).float().mean())}


def fit_head(corpus: Path, out: Path, *, whisper: Path) -> dict[str, Any]:
    """Fit, calibrate and measure the head; write head.safetensors, reading.json and CARD.md.

    Args:
        corpus: folder of `corpus`.
        out: folder to write.
        whisper: folder of the Whisper model whose frames are used.

    Returns:
        The figures.

    Raises:
        BadInput: see `read_corpus`; or a split is empty.
        WeightsMissing: see `read_corpus`.
    """
    clips = read_corpus(corpus, whisper)
    for split in ("train", "calibrate", "test"):
        if not clips.where(lambda row, split=split: row["split"] == split).any():  # type: ignore[misc]
            raise BadInput(f"{corpus} has no clip in the split {split!r}: build it with more --clips")
    layers, scores = choose(clips)
    features, labels = clips.features(layers), torch.from_numpy(clips.labels)
    train = clips.where(lambda row: row["split"] == "train")
    head = fit_together(features[train], labels[train], _penalty(clips))
    logits, judged = head.of_means(features), clips.where(_balanced)
    held = clips.where(lambda row: row["split"] == "calibrate") & judged
    temperature = float(torch.tensor(temperature_of(logits[held], labels[held])).half())
    probabilities = torch.softmax(logits / temperature, 1)
    threshold = threshold_of(probabilities[held], labels[held])
    figures: dict[str, Any] = {
        "layers": list(layers),
        "networks": NETWORKS,
        "hidden_each": HIDDEN,
        "temperature": temperature,
        "threshold": threshold,
    }
    for split in ("test", "engine", "human"):
        part = clips.where(lambda row, split=split: row["split"] == split) & judged  # type: ignore[misc]
        if part.any():
            figures[split] = measure(probabilities[part], labels[part], threshold)
            figures[split]["curve"] = coverage_curve(probabilities[part], labels[part])
    for name, voice in (("librivox_untouched", "librivox"), ("allison_untouched", "allison")):
        part = clips.where(lambda r, v=voice: r["voice"] == v and r["rendition"] == "untouched")  # type: ignore[misc]
        if part.any():
            figures[name] = _neutral_speech(probabilities[part], threshold)
    out.mkdir(parents=True, exist_ok=True)
    head.temperature.fill_(temperature)
    weights = {name: tensor.half().contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, out / "head.safetensors")
    reading = {"layers": list(layers), "features": list(PROSODY_FEATURES), "hidden": NETWORKS * HIDDEN}
    reading |= {"temperature": temperature, "threshold": threshold, "frame_group": FRAME_GROUP}
    write_atomically(out / "reading.json", json.dumps(reading, indent=2) + "\n")
    write_card(out / "CARD.md", figures, scores, clips.rows)
    return figures
