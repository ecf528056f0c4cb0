"""`python -m training label`: greedy continuations of transcripts by the language model itself.

LAB_DIR/<manifest>_<rank>_<nshard>.jsonl has one line per row in the manifest's order, as in the original: audio, text,
instruction, emotion, output, early_stop (true: truncated before the model ended its turn), and then the row's other
fields. Next to it, <...>.run is the run folder. Batches have prompts of about equal length and are always the same, so
any number of processes (`accelerate launch`), and a run that was killed and resumed, write the same lines.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from model.checkpoints.components import LANGUAGE_MODELS
from model.checkpoints.loader import read_model
from model.checkpoints.safe_reader import list_tensors, read_config
from model.config import SpeechLanguageConfig
from model.errors import BadInput, WeightsMissing
from model.files import write_atomically
from model.weights import fetch
from training.data.batches import tokenise
from training.data.chat import Chat, read_chat
from training.data.manifest import OnDropped, Report, Row, Rules, read_rows
from training.data.sources import fetching, model_folder
from training.runs.config import CONTINUE_WITH_EMOTION, LabelOptions
from training.runs.run_folder import STOP, Run, append_lines, open_run, read_lines, repair

_FIELDS = ("audio", "text", "instruction", "emotion", "output", "early_stop")
PARTS, SUMMARY = "parts", "summary.json"
_PATIENCE = timedelta(days=30)  # how long processes wait for each other


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model that continues prompts.

    Attributes:
        model: a causal language model of transformers, without LoRA.
        chat: its tokenizer and system message.
        end: the token that ends a turn.
        stops: all tokens that end a reply.
        pad: pads a batch.
    """

    model: Any
    chat: Chat
    end: int
    stops: frozenset[int]
    pad: int

    def prompt(self, user: str, *, use_emotion: bool) -> list[int]:
        """Encode a prompt up to where the reply begins, after the newline.

        Args:
            user: the user's message.
            use_emotion: whether to add the empathy prompt.

        Returns:
            Token ids.
        """
        system = self.chat.system(use_emotion=use_emotion)
        row = tokenise(self.chat.tokenizer, system=system, text=user, answer="", complete=False)
        return [*row.opening, *row.text, *row.closing]

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Generate the greedy reply to each prompt.

        Args:
            prompts: token ids.
            most: maximum number of new tokens.

        Returns:
            Token ids; what follows a reply's end is meaningless.
        """
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is partly typed
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=most,
            eos_token_id=sorted(self.stops),
            pad_token_id=self.pad,
        )
        device = self.model.device
        replies = self.model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=settings)
        return [list(map(int, reply)) for reply in replies[:, width:]]

    def read(self, reply: Sequence[int]) -> tuple[str, bool]:
        """Decode a reply.

        Args:
            reply: token ids from `write`.

        Returns:
            Its text without special tokens, and whether it was truncated before the turn's end.
        """
        length = next((place for place, token in enumerate(reply) if token in self.stops), len(reply))
        text = str(self.chat.tokenizer.decode(list(reply[:length]), skip_special_tokens=True))
        for special in self.chat.tokenizer.all_special_tokens:  # written in ordinary tokens
            text = text.replace(special, "")
        ended = length < len(reply) and reply[length] == self.end
        # A truncated character decodes to U+FFFD.
        return (text if ended else text.rstrip("\ufffd")).strip(), not ended


def load_writer(source: str, device: str = "cpu", progress: Callable[[fetch.Progress], None] | None = None) -> Writer:
    """Load the language model of a folder (of a checkpoint: the one in it) or of a name in weights.toml.

    float32 on a CPU, bfloat16 elsewhere.

    Raises:
        WeightsMissing: there is none, or it has no chat template.
    """
    folder = model_folder(source, progress)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16  # "cpu:0" too
    kind = read_config(folder).get("model_type")
    if kind == SpeechLanguageConfig.model_type:
        return make_writer(read_model(folder, device, "none", dtype).language_model, read_chat(folder))
    if kind not in LANGUAGE_MODELS:
        raise WeightsMissing(f"{folder} is a {kind} model, none of {', '.join(LANGUAGE_MODELS)}: choose another.")
    safe: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        _check_fit(folder, AutoConfig.from_pretrained(folder, **safe))
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsMissing(f"{folder} cannot be loaded ({first}): get it again.") from error
    return make_writer(model.to(device), read_chat(folder))


def _check_fit(folder: Path, config: Any) -> None:
    """Compare the weights' headers with the config's requirements before memory is allocated for either."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    found = list_tensors(folder)
    for name, value in model.state_dict().items():
        if name not in model.all_tied_weights_keys and (name not in found or found[name].shape != value.shape):
            raise WeightsMissing(f"{folder} has no {name} of shape {list(value.shape)}: get it again.")


def make_writer(model: Any, chat: Chat) -> Writer:
    """Wrap a language model. It stops where a turn ends or begins in the chat template, and at the model's own ends.

    Args:
        model: a causal language model of transformers.
        chat: its tokenizer and system message.

    Returns:
        The writer.
    """
    tokenizer = chat.tokenizer
    row = tokenise(tokenizer, system="", text="", answer="")
    start, end = row.opening[0], row.answer[0]
    ends = model.generation_config.eos_token_id
    known = {*(ends if isinstance(ends, list) else [ends]), tokenizer.pad_token_id, tokenizer.eos_token_id, start, end}
    # Its own sampling and penalties would apply too.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    return Writer(model.eval(), chat, end, frozenset(token for token in known if token is not None), pad)


def label(options: LabelOptions, writer: Writer | None = None, notify: OnDropped | None = None) -> dict[str, Any]:
    """Label a manifest, or resume it.

    In a process of `accelerate launch` this labels the process's share of the batches; the first process joins them.

    Args:
        options: of the command.
        writer: instead of the one that `options.model` names.
        notify: called with every dropped row.

    Returns:
        Counts; with "stopped" if it was asked to stop before its end.

    Raises:
        BadInput: there is no usable row, another process is at work, or the output exists from another command.
        WeightsMissing: there is no such language model.
    """
    # With this flag accelerate also finds processes without a GPU.
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)
    if options.device == "cuda" and state.device.type != "cuda":
        raise WeightsMissing("No CUDA device is available: use --device cpu.")
    report = Report(notify if state.is_main_process else None)
    rows = _share(list(read_rows([options.manifest], rules(options), report)), options.nshard, options.rank)
    target = options.lab_dir / f"{options.manifest.stem}_{options.rank}_{options.nshard}.jsonl"
    folder = target.with_suffix(".run")
    if target.exists() and not (folder / SUMMARY).exists():
        raise BadInput(f"{target} already exists from another command: remove it or choose another --lab-dir.")
    with _first(state, folder, options) as run:
        if target.exists():
            return dict(json.loads((folder / SUMMARY).read_text("utf-8"))) if run else {}
        if writer is None:
            with fetching(run) if run else nullcontext() as progress:
                writer = load_writer(options.model, str(state.device), progress)
        prompts = _prompts(rows, writer, options, report)
        _label_share(state, run, writer, rows, prompts, options, folder / PARTS)
        state.wait_for_everyone()
        return _join(prompts, folder / PARTS, target, report) if run else {}


def rules(options: LabelOptions) -> Rules:
    """The requirements of `label`: a text, and with --use-emotion an emotion; recordings are not checked."""
    return Rules(
        needs_audio=False,
        emotions="required" if options.use_emotion else "any",
        emotion_map=options.emotion_map,
        where=options.where,
    )


def _share(rows: list[Row], parts: int, part: int) -> list[Row]:
    """The rows of one of the original's shards."""
    start, end = (round(len(rows) / parts * edge) for edge in (part, part + 1))
    if start == end:
        raise BadInput(f"--nshard: part {part} of {parts} has no row of {len(rows)}: use fewer parts.")
    return rows[start:end]


@contextmanager
def _first(state: PartialState, folder: Path, options: LabelOptions) -> Iterator[Run | None]:
    """The first process locks the run folder; the others get None."""
    if not state.is_main_process:
        yield None
        return
    about = options.plain() | {"manifest_sha256": hashlib.sha256(options.manifest.read_bytes()).hexdigest()}
    with open_run(folder, about, changeable=("device", "batch_size")) as run:
        (folder / PARTS).mkdir(exist_ok=True)
        yield run


def instruction(row: Row, options: LabelOptions) -> str:
    """What precedes the row's text."""
    return CONTINUE_WITH_EMOTION.format(emotion=row.emotion) if options.use_emotion else options.instruction


def _prompts(rows: list[Row], writer: Writer, options: LabelOptions, report: Report) -> dict[int, list[int]]:
    """Prompts by row index; a row whose prompt is too long is dropped."""
    prompts = {}
    for place, row in enumerate(rows):
        prompt = writer.prompt(instruction(row, options) + row.text, use_emotion=options.use_emotion)
        if len(prompt) > options.max_length:
            message = f"the prompt has {len(prompt)} tokens, more than {options.max_length} (--max-length)"
            report.drop(row.file, row.line, "text too long", message)
        else:
            prompts[place] = prompt
    if not prompts:
        raise BadInput(f"{options.manifest} has no usable row{report.first()}.")
    return prompts


def _batches(prompts: dict[int, list[int]], size: int) -> list[list[int]]:
    """Row indices in batches, longest first, so that a lack of memory shows at once."""
    order = sorted(prompts, key=lambda place: -len(prompts[place]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _label_share(
    state: PartialState,
    run: Run | None,
    writer: Writer,
    rows: list[Row],
    prompts: dict[int, list[int]],
    options: LabelOptions,
    parts: Path,
) -> None:
    """Label this process's share of the remaining batches; every batch is appended as a whole."""
    state.wait_for_everyone()  # the first process creates the folder
    done = _read_parts(parts)
    state.wait_for_everyone()  # nobody writes before everybody has read
    batches = [batch for batch in _batches(prompts, options.batch_size) if not done.keys() >= set(batch)]
    mine = batches[state.process_index :: state.num_processes]
    part = parts / f"{state.process_index}.jsonl"
    repair(part)
    with run.bar("label", sum(map(len, mine))) if run else nullcontext() as bar:
        for batch in mine:
            if (parts.parent / STOP).exists():
                break
            replies = writer.write([prompts[place] for place in batch], options.max_new_tokens)
            lines = (_line(rows[place], reply, writer, options) for place, reply in zip(batch, replies, strict=True))
            append_lines(part, [{"place": place, "line": line} for place, line in zip(batch, lines, strict=True)])
            if bar is not None:
                bar.advance(len(batch))


def _line(row: Row, reply: list[int], writer: Writer, options: LabelOptions) -> dict[str, Any]:
    output, early_stop = writer.read(reply)
    values = (row.audio, row.text, instruction(row, options), row.emotion or "", output, early_stop)
    line = dict(zip(_FIELDS, values, strict=True))
    return line | {name: value for name, value in row.data.items() if name not in line}


def _read_parts(parts: Path) -> dict[int, dict[str, Any]]:
    """Finished lines by row index."""
    return {one["place"]: one["line"] for path in sorted(parts.glob("*.jsonl")) for one in read_lines(path)[0]}


def _join(prompts: dict[int, list[int]], parts: Path, target: Path, report: Report) -> dict[str, Any]:
    """Sort the lines and publish them; if lines are missing, report it."""
    done = _read_parts(parts)
    if done.keys() < prompts.keys():
        return {"stopped": True, "lines": len(done), "of": len(prompts)}
    lines = [done[place] for place in sorted(prompts)]
    summary = {
        "labels": str(target),
        "lines": len(lines),
        "cut_off": sum(line["early_stop"] for line in lines),
        "dropped": report.counts(),
    }
    report.write(parts.parent)
    write_atomically(parts.parent / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    write_atomically(target, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    shutil.rmtree(parts)
    return summary
