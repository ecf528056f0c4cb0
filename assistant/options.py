"""Options as frozen pydantic models: one definition for command line, file and window."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from assistant.errors import BadInput

POSITIONAL: dict[str, Any] = {"positional": True}
"""`Field(json_schema_extra=POSITIONAL)`: an argument by place."""


class Options(BaseModel):
    """Frozen options; unknown names and values out of range are refused.

    A field is an argument: its description is the help, its default is shown. `json_schema_extra` may hold
    `positional`, `group` (a title), `metavar`, `off` (the flag that says no, in place of `--no-NAME`), and `switch`
    (a flag of another name that says yes).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    refusal: ClassVar[type[Exception]] = BadInput

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Give `parser` one argument a field; a field that is not given is absent from the parsed values."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for name, field in cls.model_fields.items():
            extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            title = extra.get("group")
            into: Any = parser
            if isinstance(title, str):
                into = groups[title] = groups.get(title) or parser.add_argument_group(title)
            shown = not field.is_required() and field.default not in (None, "", (), {}) and "switch" not in extra
            default = f" ({_shown(field.default)})" if shown else ""
            # argparse takes % in a help text for a format.
            settings: dict[str, Any] = {"help": f"{field.description}{default}".replace("%", "%%")}
            if extra.get("positional"):
                into.add_argument(name, **settings)
                continue
            flag = f"--{name.replace('_', '-')}"
            settings["default"] = argparse.SUPPRESS
            kinds = _kinds(field.annotation)
            if "switch" in extra:
                into.add_argument(extra["switch"], dest=name, action="store_true", **settings)
                continue
            if "off" in extra:
                either = into.add_mutually_exclusive_group()
                either.add_argument(flag, action="store_true", **settings)
                either.add_argument(extra["off"], dest=name, action="store_false", default=argparse.SUPPRESS)
                continue
            settings["required"] = field.is_required()
            if bool in kinds:
                settings["action"] = argparse.BooleanOptionalAction
            elif choices := [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]:
                settings["choices"] = choices
            elif "metavar" in extra:
                settings["metavar"] = extra["metavar"]
            into.add_argument(flag, **settings)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The options in `values`, such as `vars()` of parsed arguments or a run.toml; other names are left out.

        Raises:
            BadInput: a value is not allowed; one line that names the option and what is wrong.
        """
        try:
            return cls.model_validate({name: value for name, value in values.items() if name in cls.model_fields})
        except ValidationError as error:
            first = error.errors()[0]
            option = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
            raise cls.refusal(f"{option}{first['msg'].removeprefix('Value error, ')}") from error

    def plain(self) -> dict[str, Any]:
        """The options as TOML takes them: paths as text, nothing that is None."""
        return self.model_dump(mode="json", exclude_none=True)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types of an annotation, without None."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for one in get_args(annotation) for kind in _kinds(one))
    return () if annotation is type(None) else (annotation,)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
