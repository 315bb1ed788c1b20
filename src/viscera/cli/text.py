"""`viscera text`: the label vectors that tell the model which class is meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscera.cli.classes import chosen

if TYPE_CHECKING:
    from viscera.text.bank import Bank, Finish

app = typer.Typer(name="text", help="Label vectors: make them, see them, ask them.", no_args_is_help=True)

Encoder = Annotated[
    str,
    typer.Option(
        "--encoder", "-e", help="A name (see `viscera text prompts`), a directory, a file of vectors, or a hub id."
    ),
]
PromptText = Annotated[
    str, typer.Option("--prompt", "-p", help='A prompt by name, or a template such as "a CT of the {}".')
]
Classes = Annotated[
    str, typer.Option("--classes", "-c", help='Names, ids or groups, e.g. organs,"kidney tumor"; in id order.')
]
Centre = Annotated[bool, typer.Option("--centre", help="Take away what all classes share.")]
Whiten = Annotated[
    float, typer.Option("--whiten", help="After centring: spread directions evenly, 0 (off) to 1 (like one-hot).")
]
Unit = Annotated[bool, typer.Option("--unit", help="Bring every vector to length 1 at the end.")]


@app.command()
def encode(
    output: Annotated[Path, typer.Option("--output", "-o", help="The bank to write (.safetensors).")],
    encoder: Encoder = "minilm",
    prompt: PromptText = "v3",
    classes: Classes = "all",
    centre: Centre = False,
    whiten: Whiten = 0.0,
    unit: Unit = False,
    update: Annotated[
        Path | None,
        typer.Option("--update", help="A bank to start from: only classes new to it are encoded, no vector moves."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bank.")] = False,
) -> None:
    """Encode class names into a bank file that says where every vector came from.

    Example: `viscera text encode -o bank.safetensors --encoder minilm --prompt v3 --centre`
    """
    from rich.console import Console

    from viscera.errors import OutputError, SettingError
    from viscera.text.bank import Bank, Finish, make
    from viscera.text.encoders import load
    from viscera.text.prompts import prompt as find_prompt

    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already. Choose another place, or replace it with --overwrite.")
    if update and (centre or whiten or unit):
        raise SettingError(
            "--update keeps the finish of the bank it starts from: leave --centre, --whiten and --unit out."
        )
    structures, finish = chosen(classes), Finish(centre=centre, whiten=whiten, unit=unit)
    if update:
        bank = Bank.load(update).changed(structures, load(encoder), find_prompt(prompt))
    else:
        bank = make(structures, load(encoder), find_prompt(prompt), finish)
    bank.save(output)
    Console().print(
        f"{output}: {len(bank.keys)} vectors of {bank.length} values\n"
        f"encoder {bank.encoder_name} ({bank.encoder}), prompt {bank.prompt}, {bank.finish}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command()
def similarity(
    of: Annotated[
        list[str] | None,
        typer.Argument(help="One or two banks or encoders to show side by side.", show_default="minilm"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for similarity.png and similarity.csv.")
    ] = Path("viscera_similarity"),
    prompt: PromptText = "v3",
    classes: Classes = "all",
    centre: Centre = False,
    whiten: Whiten = 0.0,
    unit: Unit = False,
) -> None:
    """Draw which classes an encoder takes to be alike, and write the cosines.

    A bank file is shown as it is; the options are for encoders.

    Example: `viscera text similarity minilm few-hot -o likeness`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from viscera.errors import SettingError
    from viscera.text.bank import Finish
    from viscera.text.similarity import closest, mean_cosine, save_picture, save_table, title

    of = of or ["minilm"]
    if len(of) > 2:
        raise SettingError(f"{len(of)} were named; two fit side by side.")
    finish = Finish(centre=centre, whiten=whiten, unit=unit)
    banks = [_bank(spec, prompt, classes, finish) for spec in of]
    save_picture(banks, output / "similarity.png")
    save_table(banks, output / "similarity.csv")

    table = Table("bank", "mean cosine", "most alike", box=None, header_style="bold")
    for bank in banks:
        one, other, cosine = closest(bank)
        table.add_row(escape(title(bank)), f"{mean_cosine(bank):.3f}", f"{one}, {other} ({cosine:.2f})")
    console = Console()
    console.print(table)
    console.print(f"{output / 'similarity.png'}, {output / 'similarity.csv'}", highlight=False, markup=False)


@app.command()
def match(
    phrase: Annotated[str, typer.Argument(help="What a person would say.")],
    encoder: Encoder = "minilm",
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many classes to show.")] = 5,
) -> None:
    """Rank the classes by likeness to a phrase: to find a name, never to choose a class for you.

    Example: `viscera text match "left renal mass"`
    """
    from rich.console import Console
    from rich.table import Table

    from viscera.errors import ClassNameError
    from viscera.names import resolve
    from viscera.text.encoders import load
    from viscera.text.match import Matcher

    ranked = Matcher(load(encoder)).rank(phrase)
    table = Table("score", "class", "id", box=None, header_style="bold")
    for structure, score in ranked[:top]:
        table.add_row(f"{score:.2f}", structure.key, str(structure.id))
    console = Console()
    console.print(table)
    try:
        taken = ", ".join(structure.key for structure in resolve(phrase))
        console.print(f"--classes takes {phrase!r} as: {taken}", highlight=False, markup=False)
    except ClassNameError:
        console.print(
            f"--classes does not take {phrase!r}: write the key of the class you mean.", highlight=False, markup=False
        )


@app.command()
def prompts(
    name: Annotated[str, typer.Argument(help="The class to show them for.")] = "liver tumor",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One prompt or template only.", show_default="all")
    ] = None,
) -> None:
    """Show what the encoders read for a class, and which encoders there are.

    Example: `viscera text prompts "left kidney"`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from viscera.taxonomy import read_table
    from viscera.text.prompts import prompt as find_prompt
    from viscera.text.prompts import prompts as all_prompts

    console = Console()
    for structure in chosen(name):
        table = Table("prompt", f"what is read for {structure.key}", box=None, header_style="bold")
        for shown in [find_prompt(prompt)] if prompt else all_prompts().values():
            table.add_row(escape(shown.name), escape("\n".join(shown.texts(structure))))
        console.print(table)
        console.print()
    if not prompt:
        encoders = Table("encoder", "what it is", "values", "licence", box=None, header_style="bold")
        for known, row in read_table("encoders.toml").items():
            encoders.add_row(known, escape(row["what"]), str(row.get("length", "")), row.get("licence", ""))
        console.print(encoders)


def _bank(spec: str, prompt: str, classes: str, finish: Finish) -> Bank:
    """The bank in a file, or one made by the encoder that `spec` means."""
    from viscera.text.bank import Bank, is_bank, make
    from viscera.text.encoders import load
    from viscera.text.prompts import prompt as find_prompt

    if is_bank(Path(spec)):
        return Bank.load(Path(spec))
    return make(chosen(classes), load(spec), find_prompt(prompt), finish)
