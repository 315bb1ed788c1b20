"""The order of the house: a module imports only from what stands above it (docs/explanation/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import viscera

PACKAGE = Path(viscera.__file__).parent
ORDER = [
    ("errors", "heap", "shapes", "threads"),
    ("masks", "settings", "taxonomy"),
    ("components",),
    ("names",),
    ("io",),
    ("data",),
    ("text",),
    ("model",),
    ("train", "infer"),
    ("post",),
    ("metrics",),
    ("report",),
    ("workflow",),
    ("serve",),
    ("cli",),
    ("__init__", "__main__"),
]
LAYER = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"viscera.{alias.name}" for alias in node.names] if node.module == "viscera" else [node.module or ""]
            )
        rooms |= {name.split(".")[1] for name in names if name.startswith("viscera.")}
    return {name for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_from_above(module):
    here = room(module.parts)
    if here == "knowledge":
        assert (PACKAGE / module).read_text() == "", "knowledge holds data, no code"
        return
    for other in imported_rooms(PACKAGE / module) - {here}:
        assert LAYER[other] < LAYER[here], f"{module} imports viscera.{other}, which does not stand above it"
