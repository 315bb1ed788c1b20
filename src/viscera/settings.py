"""Tables of settings (TOML, JSON) become frozen dataclasses; a wrong name or value is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from viscera.errors import SettingError

T = TypeVar("T")


def settings_from(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """`kind(**values)` with every value checked against the field's type, and tables made into the dataclasses they
    stand for.

    where  names the table in errors: "recipe.toml, [sampling]"
    Raises SettingError for an unknown name, a missing one, a value of another type, and whatever `kind` refuses.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(kind)
    own = [item.name for item in fields(kind) if item.init]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(own)):
        raise SettingError(f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(own)}.")
    out: dict[str, Any] = {}
    for name, value in values.items():
        inner = _dataclass_in(hints[name])
        if inner is not None and isinstance(value, Mapping):
            out[name] = settings_from(inner, value, f"{where}, {name}")
        elif inner is not None and value is not None:
            out[name] = value  # an object made already; its class checks it
        else:
            try:
                checked = TypeAdapter(hints[name], config=ConfigDict(allow_inf_nan=False))
                out[name] = checked.validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise SettingError(f"{where}: {name} is {value!r}. {reason}.") from error
    try:
        return kind(**out)
    except TypeError as error:
        raise SettingError(f"{where}: {error}.") from error
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that a hint names: `X` of ``X`` and of ``X | None``."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((choice for choice in choices if is_dataclass(choice) and isinstance(choice, type)), None)
