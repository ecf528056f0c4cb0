"""Stage 0: CTC pretraining of the adapter on transcripts, without passes through the language model.

See `training.ctc_pretraining.ctc_training`. In the run folder, `checkpoint.pt` resumes exactly, and
`adapter.safetensors` is the moving average of the weights at the last validation.
"""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

from model.errors import BadInput
from model.files import replacing
from training.ctc_pretraining.ctc_training import Clip, CtcPretrainer, Recipe, loss_of, word_error
from training.data.feature_cache import FeatureCache
from training.runs.run_folder import Run, read_lines

CHECKPOINT = "checkpoint.pt"


class Corpora:
    """Corpus folders (manifest.jsonl and features/) that may still be growing.

    A folder named twice counts twice in every epoch.
    """

    def __init__(self, folders: list[Path], tokenizer: Any) -> None:
        self.folders = folders
        self.tokenizer = tokenizer
        self.caches = {folder: FeatureCache.open(folder / "features") for folder in folders}
        widths = {cache.about["width"] for cache in self.caches.values()}
        if len({json.dumps([c.about[n] for n in ("encoder", "window")]) for c in self.caches.values()}) != 1:
            raise BadInput("the corpora were encoded with different encoders or windows: build them alike")
        self.width = int(widths.pop())
        self._ids: dict[str, tuple[int, ...]] = {}

    def clips(self, counts: dict[str, int] | None = None) -> tuple[list[Clip], dict[str, int]]:
        """Read the clips.

        Args:
            counts: rows to use of each folder's manifest; None: all.

        Returns:
            The clips, and the number of rows used per folder.
        """
        found, taken = [], {}
        for folder in self.folders:
            cache = self.caches[folder]
            cache.refresh()
            rows, _ = read_lines(folder / "manifest.jsonl")
            rows = rows[: counts.get(str(folder), 0)] if counts else [row for row in rows if row["key"] in cache]
            taken[str(folder)] = len(rows)
            found += [Clip(cache, row, self._tokens(row["text"])) for row in rows if row["key"] in cache]
        return found, taken

    def _tokens(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self._ids[text]


def batches(clips: list[Clip], recipe: Recipe, epoch: int) -> list[list[Clip]]:
    """One epoch over the training clips in batches of similar length, in an order that seed and epoch determine."""
    random = np.random.default_rng([recipe.seed, 1, epoch])
    order = [clips[i] for i in random.permutation(len(clips))]
    found: list[list[Clip]] = []
    for start in range(0, len(order), 2048):
        batch: list[Clip] = []
        for clip in sorted(order[start : start + 2048], key=lambda clip: clip.frames):
            if batch and (len(batch) + 1) * clip.frames > recipe.batch_frames:
                found.append(batch)
                batch = []
            batch.append(clip)
        found.append(batch)
    return [found[i] for i in random.permutation(len(found))]


class WarmStart:
    """The state of a training run in its folder, restored from its checkpoint if there is one.

    Args:
        folder: of the run; it exists.
        recipe: settings.
        corpora: to train on.
        embeddings: see `CtcPretrainer`.
        blank: see `CtcPretrainer`. A run that is resumed, or starts from another, keeps that one's blank.
        checks: to validate on.

    Raises:
        BadInput: there are no clips, or the recipe's `start` cannot be used.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, corpora: Corpora, embeddings: Tensor, blank: Tensor, checks: Corpora
    ) -> None:
        self.folder, self.corpora, self.checks, self.recipe = folder, corpora, checks, recipe
        self.step, self.epoch, self.place, self.seconds = 0, 0, 0, 0.0
        self.counts: dict[str, int] = {}
        path = folder / CHECKPOINT
        saved = torch.load(path, weights_only=True) if path.exists() else None
        if saved:
            recipe = self.recipe = Recipe(**{**saved["recipe"], "steps": recipe.steps})
        torch.manual_seed(recipe.seed)
        scale = saved["averaged"]["scale"] if saved else _channel_sizes(corpora, recipe)
        self.pretrainer = CtcPretrainer(recipe, embeddings, scale, blank)
        if recipe.start and not saved:
            _load_start(Path(recipe.start), self.pretrainer)
        self.averaged = CtcPretrainer(recipe, embeddings, scale, blank).requires_grad_(False)
        self.averaged.load_state_dict(saved["averaged"] if saved else self.pretrainer.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.pretrainer.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
        )
        if saved:
            self.pretrainer.load_state_dict(saved["speller"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.epoch, self.place = saved["step"], saved["epoch"], saved["place"]
            self.counts, self.seconds = saved["counts"], saved["seconds"]

    def save(self) -> None:
        """Replace the checkpoint."""
        state = {
            "recipe": asdict(self.recipe),
            "speller": self.pretrainer.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "place": self.place,
            "counts": self.counts,
            "seconds": self.seconds,
        }
        with replacing(self.folder / CHECKPOINT) as partial:
            torch.save(state, partial)

    def round(self) -> tuple[list[list[Clip]], Tensor]:
        """The current epoch; corpora grow only between epochs.

        Returns:
            Its batches, and the tokens of its texts.
        """
        clips, self.counts = self.corpora.clips(self.counts or None)
        clips = [clip for clip in clips if _trainable(clip, self.recipe)]
        if not clips:
            raise BadInput("the corpora hold no training clips yet: let `wide-corpus` continue, then try again")
        vocabulary = torch.tensor(sorted({i for clip in clips for i in clip.ids}))
        return batches(clips, self.recipe, self.epoch), vocabulary

    def train_step(self, batch: list[Clip], vocabulary: Tensor) -> float:
        """Update the weights.

        Args:
            batch: clips.
            vocabulary: tokens of the epoch's texts.

        Returns:
            The loss per token.
        """
        recipe = self.recipe
        rise = min(1.0, (self.step + 1) / recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(rise, (recipe.steps - self.step) / (0.2 * recipe.steps))
        loss = loss_of(self.pretrainer, batch, vocabulary, recipe, self.step)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.pretrainer.parameters(), 1.0)
        self.optimiser.step()
        decay = min(recipe.averaging, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.averaged.parameters(), self.pretrainer.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        self.step += 1
        self.place += 1
        return loss.item()

    def next_round(self) -> None:
        """Start the next epoch, with what the corpora have grown to."""
        self.epoch, self.place, self.counts = self.epoch + 1, 0, {}

    def validate(self, vocabulary: Tensor) -> dict[str, float]:
        """Validate the averaged weights on the check corpora and write the adapter.

        Args:
            vocabulary: candidate tokens.

        Returns:
            Word error rates by set.
        """
        clips, _ = self.checks.clips()
        words = word_error(self.averaged, clips, vocabulary, self.checks.tokenizer)
        about = {
            "adapter_kernel_sizes": json.dumps(self.recipe.kernel_sizes),
            "adapter_inner_size": str(self.recipe.inner_size),
            "adapter_layers": str(self.recipe.layers),
        }
        with replacing(self.folder / "adapter.safetensors") as partial:
            save_file(self.averaged.exported(vocabulary), partial, about)
        return words


def _load_start(folder: Path, pretrainer: CtcPretrainer) -> None:
    """Load the averaged weights of another run, with its channel sizes and blank.

    Raises:
        BadInput: there is no such run, its weights are damaged or of another shape, or it was trained differently.
    """
    fixed = {name: value.clone() for name, value in pretrainer.state_dict().items() if _is_fixed(name)}
    try:
        saved = torch.load(folder / CHECKPOINT, weights_only=True)["averaged"]
        new, other = pretrainer.load_state_dict(saved, strict=False)
        finite = all(bool(value.isfinite().all()) for value in saved.values())
    except _DAMAGED as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"--start {folder}: its {CHECKPOINT} cannot be used ({why}): choose another run.") from error
    unlike = [*other, *(name for name in new if not name.startswith("adapter.layers."))]
    if unlike or not finite:
        raise BadInput(
            f"--start {folder}: its adapter {f'differs in {unlike[0]}' if unlike else 'has NaN or infinite weights'}."
        )
    own = pretrainer.state_dict()
    if not all(torch.allclose(own[name], value) for name, value in fixed.items()):
        raise BadInput(
            f"--start {folder}: it was trained with other embeddings or another sharpness: choose another run."
        )


_DAMAGED = (OSError, EOFError, LookupError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError)


def _is_fixed(name: str) -> bool:
    """Whether this follows from the language model's embeddings and the recipe, and is not trained."""
    return name.startswith("adapter.norm.") or name == "adapter.sharpness"


def _channel_sizes(corpora: Corpora, recipe: Recipe) -> Tensor:
    """The root mean square of each encoder channel over some clips, [D]."""
    clips, _ = corpora.clips()
    random = np.random.default_rng([recipe.seed, 3])
    some = [clips[i] for i in random.permutation(len(clips))[:300]]
    if not some:
        raise BadInput("the corpora hold no clips yet: let `wide-corpus` continue, then try again")
    return torch.cat([clip.cache[clip.row["key"]] for clip in some]).square().mean(0).sqrt()


def _trainable(clip: Clip, recipe: Recipe) -> bool:
    """Whether a clip is in the training split and long enough for its tokens.

    It needs a frame for every token, and a blank between repeats, at the fastest tempo.
    """
    repeats = sum(a == b for a, b in zip(clip.ids, clip.ids[1:], strict=False))
    frames = int(clip.frames * (1 - recipe.stretch)) >> len(recipe.kernel_sizes)
    return clip.row["split"] == "train" and 0 < len(clip.ids) + repeats <= frames


def train(
    training: WarmStart, run: Run, *, check_every: int = 1000, save_seconds: float = 300.0, report_every: int = 50
) -> dict[str, Any]:
    """Train until the recipe's steps are done or a stop is requested.

    Args:
        training: the state.
        run: where progress is reported.
        check_every: steps between validations.
        save_seconds: seconds between checkpoints.
        report_every: steps between reports.

    Returns:
        The last figures.
    """
    recipe, losses, samples = training.recipe, [0.0], 0
    figures: dict[str, Any] = {}
    begun = saved = time.monotonic()
    first, before = training.step, training.seconds
    ended = training.step >= recipe.steps
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warm start", total=recipe.steps)
        while not ended:
            todo, vocabulary = training.round()
            for batch in todo[training.place :]:
                losses.append(training.train_step(batch, vocabulary))
                samples += len(batch)
                now = time.monotonic()
                training.seconds = before + now - begun
                bar.update(task, completed=training.step)
                ended = training.step >= recipe.steps or run.stop_requested
                checking = ended or training.step % check_every == 0
                if checking or training.step % report_every == 0:
                    figures = _figures(training, losses[1:][-report_every:])
                    figures["samples_per_second"] = round(samples / (now - begun), 1)
                    left = (recipe.steps - training.step) * (now - begun) / (training.step - first)
                    figures["eta_seconds"] = round(left)
                    if checking:
                        figures["words"] = training.validate(vocabulary)
                        figures["validation"] = _of_validation(figures["words"])
                    run.report("warm-start", training.step, recipe.steps, **figures)
                if ended or now - saved > save_seconds:
                    training.save()
                    saved = now
                if ended:
                    break
            else:
                training.next_round()
    run.write_card(_card(training, figures))
    return {"step": training.step, "of": recipe.steps} | figures


def _figures(training: WarmStart, losses: list[float]) -> dict[str, Any]:
    return {
        "loss": round(float(np.mean(losses)), 4),
        "learning_rate": training.optimiser.param_groups[0]["lr"],
        "round": training.epoch,
        "clips": sum(training.counts.values()),
        "hours": round(training.seconds / 3600, 2),
    }


def _of_validation(words: dict[str, float]) -> float | None:
    """The mean over the sets of the split "validation", or over all where there is none."""
    chosen = [value for name, value in words.items() if name.startswith("validation")] or list(words.values())
    return round(float(np.mean(chosen)), 4) if chosen else None


def _card(training: WarmStart, figures: dict[str, Any]) -> str:
    words = "\n".join(f"| {name} | {value:.1%} |" for name, value in figures.get("words", {}).items())
    recipe = "\n".join(f"- {name}: {value}" for name, value in asdict(training.recipe).items())
    corpora = "\n".join(f"- {name}: {count} clips" for name, count in training.counts.items())
    return f"""# Stage 0: CTC pretraining of the adapter

{training.step} of {training.recipe.steps} steps, {training.epoch} rounds, {training.seconds / 3600:.2f} hours;
loss per token {figures.get("loss")}. The adapter's frames are trained to be nearest to the language model's token
embeddings, with a fixed vector between them (training/ctc_pretraining/ctc_training.py). `adapter.safetensors`:
the mean of the last weights.

| word error rate, greedy CTC | |
|---|---|
{words}

{recipe}

Corpora of the last round:
{corpora}
"""
