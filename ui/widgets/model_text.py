"""What `model.manager list` reports about a checkpoint, in plain language."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ui.core.translations import tr
from ui.core.untrusted_text import brief, one_line
from ui.widgets.forms import format_bytes

AUTOMATIC = ("auto", "auto")

About = Mapping[str, Any]


def presets() -> tuple[str, ...]:
    """Return the built-in presets, the default first."""
    return tuple(tomllib.loads((files("resources") / "presets.toml").read_text("utf-8")))


def checkpoint_name(source: str) -> str:
    """Return a checkpoint's name: the preset's name or the last part of the folder."""
    return one_line(Path(source).name or source)


def checkpoint_purpose(source: str) -> str:
    """Say whom a preset suits."""
    known = {
        "mini": tr("Small and fast, for any computer. English only."),
        "mini-0.5b": tr("A larger language model: better answers, but slower."),
        "mini-speech": tr("Experimental: replies to the sound itself, not to its transcript. Mishears more than mini."),
    }
    return known.get(source, brief(source))


def facts(about: About) -> str:
    """Describe a checkpoint in one line: where it is, how large, what it can do."""
    if about["state"] == "absent":
        amount = about["download_bytes"]
        return tr("not on this computer yet · {size} download").format(size=format_bytes(amount)) if amount else ""
    parts = [format_bytes(about["bytes"])]
    if about["kind"] == "original":
        parts.append(tr("original format, convert it to use it"))
    elif about["kind"] != "other":
        parts.append(tr("reads emotion") if about["reads_emotion"] else tr("no emotion head"))
    if about["stored"]:
        parts.append(tr("stored as 4-bit"))
    return " · ".join(parts)


def loading_mode(device: str, quantize: str) -> str:
    """Describe a device and a precision."""
    bits = {
        "none": tr("full precision"),
        "int8": tr("8-bit"),
        "nf4": tr("4-bit"),
        "nf4-all": tr("4-bit with encoder"),
    }[quantize]
    return f"{tr('on the graphics card') if device == 'cuda' else tr('on the CPU')}, {bits}"


def plan_text(plan: Mapping[str, Any]) -> str:
    """Say whether a checkpoint fits into memory, how, and what helps if it does not."""
    best = plan["recommended"]
    if best is None:
        near = min(plan["estimates"], key=lambda one: one["needed_bytes"] - one["free_bytes"])
        return tr(
            "Does not fit: even {way} needs {needed}, but only {free} of memory is free. Close other programs or "
            "choose a smaller model. The current model is unloaded first, which also frees some."
        ).format(**_amounts(near))
    chosen = next(one for one in plan["estimates"] if (one["device"], one["quantize"]) == tuple(best.values()))
    if chosen["verdict"] == "fits":
        return tr("Fits {way}: needs {needed} of {free} free memory.").format(**_amounts(chosen))
    return tr("May just fit {way}: needs {needed}, {free} of memory is free. Close other programs to be sure.").format(
        **_amounts(chosen)
    )


def loading_modes(plan: Mapping[str, Any]) -> list[tuple[tuple[str, str], str]]:
    """Return all ways to load a checkpoint, automatic first, each with its memory."""
    best = plan["recommended"]
    automatic = tr("Automatic ({way})").format(way=loading_mode(**best)) if best else tr("Automatic")
    verdicts = {"fits": tr("fits"), "tight": tr("may just fit"), "does not fit": tr("does not fit")}
    return [
        (AUTOMATIC, automatic),
        *(
            ((one["device"], one["quantize"]), f"{_first_upper(text)}: {format_bytes(one['needed_bytes'])}, {verdict}")
            for one in plan["estimates"]
            for text, verdict in [(loading_mode(one["device"], one["quantize"]), verdicts[one["verdict"]])]
        ),
    ]


def fits(plan: Mapping[str, Any], device: str, quantize: str) -> bool:
    """Return whether that way fits, or may fit."""
    if (device, quantize) == AUTOMATIC:
        return plan["recommended"] is not None
    return any(
        one["verdict"] != "does not fit"
        for one in plan["estimates"]
        if (one["device"], one["quantize"]) == (device, quantize)
    )


def _amounts(estimate: Mapping[str, Any]) -> dict[str, str]:
    return {
        "way": loading_mode(estimate["device"], estimate["quantize"]),
        "needed": format_bytes(max(0, estimate["needed_bytes"])),
        "free": format_bytes(estimate["free_bytes"]),
    }


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
