"""`viscera export` and `viscera splits`: what challenges and protocols want."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier files.")]


def export(
    challenge: Annotated[str, typer.Argument(help="decathlon, btcv, amos or flare22.")],
    predictions: Annotated[Path, typer.Argument(help="Folder of results of `viscera segment`, named after the scans.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the submission.")] = Path("submission"),
    overwrite: Overwrite = False,
) -> None:
    """Write predictions as a challenge wants them: its folders, file names and label values, on the scans' own grids.

    **Examples**

    `viscera export decathlon out/ -o submission/`

    `viscera export btcv out/ -o submission/`
    """
    from rich.console import Console
    from rich.markup import escape

    from viscera.report.challenges import challenge as challenge_of
    from viscera.report.challenges import export_challenge

    console = Console(highlight=False)
    done = export_challenge(challenge, predictions, output, overwrite=overwrite)
    failed = [case for case in done if case.file is None]
    for case in failed:
        console.print(f"[red]{escape(case.case)}: {escape(case.error)}[/]")
    about = challenge_of(challenge)
    console.print(f"{len(done) - len(failed)} of {len(done)} cases of {about.title} written to {output}/. {about.note}")
    if failed:
        raise typer.Exit(1)


def splits(
    cases: Annotated[Path, typer.Argument(help="Folder of images or labels, or a text file with one case per line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The split file.")] = Path("splits.json"),
    folds: Annotated[int | None, typer.Option(help="Cross-validation with so many folds (BTCV: 5).")] = None,
    shares: Annotated[str, typer.Option(help="Shares of training, validation and test.")] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Part cases into folds, or into training, validation and test.

    The same names and seed give the same split everywhere. Folds are written in nnU-Net's format.

    **Examples**

    `viscera splits btcv/imagesTr --folds 5 -o splits_final.json`

    `viscera splits cases.txt --shares 0.7,0.1,0.2`
    """
    import json

    from viscera.errors import InputError, OutputError, SettingError
    from viscera.report.challenges import fold_splits, share_split
    from viscera.report.evaluation.cases import listed_cases
    from viscera.report.evaluation.store import write_text

    if not cases.exists():
        raise InputError(f"There is no {cases}.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists. Use --overwrite to replace it.")
    names = sorted(listed_cases(cases)) if cases.is_dir() else cases.read_text(encoding="utf-8").split()
    if not names:
        raise InputError(f"{cases} holds no case.")
    if folds is not None:
        split: object = fold_splits(names, folds, seed)
        sizes = f"{folds} folds"
    else:
        try:
            train, val, test = (float(share) for share in shares.split(","))
        except ValueError:
            raise SettingError(f"--shares {shares}: give three numbers, such as 0.7,0.1,0.2.") from None
        parted = share_split(names, (train, val, test), seed)
        split = parted
        sizes = ", ".join(f"{len(part)} {name}" for name, part in parted.items())
    write_text(output, json.dumps(split, indent=1) + "\n")
    typer.echo(f"{len(names)} cases in {output}: {sizes}")
