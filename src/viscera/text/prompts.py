"""Prompts: the texts that a text encoder reads for a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter

from viscera.errors import KnowledgeError, SettingError
from viscera.taxonomy import Structure, read_table

_NAME = ""  # the field of "{}"
_DESCRIPTIONS = ("what", "where", "ct")


@dataclass(frozen=True)
class Prompt:
    """One template, or several that make an ensemble."""

    name: str
    templates: tuple[str, ...]  # with {} for the class's name, {what}, {where} and {ct} for its description
    source: str = ""

    def texts(self, structure: Structure) -> tuple[str, ...]:
        """What an encoder reads for `structure`: one text per template.

        Raises KnowledgeError if a template asks for a description that the class does not have.
        """
        about = descriptions().get(structure.key, {})
        try:
            return tuple(template.format(structure.name, **about) for template in self.templates)
        except KeyError as missing:
            raise KnowledgeError(f"descriptions.toml says no {missing} of {structure.key!r}.") from None


@cache
def prompts() -> Mapping[str, Prompt]:
    """The prompts of `knowledge/prompts.toml` by name."""
    return {
        name: Prompt(name, tuple(row["templates"]), row["source"]) for name, row in read_table("prompts.toml").items()
    }


@cache
def descriptions() -> Mapping[str, Mapping[str, str]]:
    """What each class is, where it lies and how it looks in CT, by key."""
    rows = read_table("descriptions.toml")
    return {key: {field: row[field] for field in _DESCRIPTIONS} for key, row in rows.items() if key != "sources"}


def prompt(text: str) -> Prompt:
    """The prompt of this name, or one made of `text` if it is a template such as "a CT of the {}".

    Raises SettingError if it is neither, or if the template has a field that no class fills.
    """
    if text in prompts():
        return prompts()[text]
    try:
        fields = {field for _, field, _, _ in Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise SettingError(f"The prompt {text!r} is no template: {error}. Write {{}} where the name goes.") from None
    if _NAME not in fields:
        raise SettingError(
            f"There is no prompt {text!r}. Take one of {', '.join(prompts())}, or write a template with {{}} where "
            "the class's name goes."
        )
    if unknown := fields - {_NAME, *_DESCRIPTIONS}:
        raise SettingError(
            f"The prompt {text!r} has unknown fields {sorted(unknown)}; known are {{}}, {{what}}, {{where}} and {{ct}}."
        )
    return Prompt(text, (text,), "given by the user")
