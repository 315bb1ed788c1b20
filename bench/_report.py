"""How a bench with bars ends: its figures in files, its table and its verdict last on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"


def report(name: str, text: str, verdicts: Sequence[tuple[str, bool]], record: Mapping[str, Any]) -> int:
    """Writes out/NAME.json and out/NAME.md, prints the table and every bar; the exit code: 0 if all are met.

    text      the tables, Markdown
    verdicts  a sentence for each bar, and whether it is met
    record    everything that was measured
    """
    passed = all(met for _, met in verdicts)
    text += "\n\n" + "\n".join(f"- {'met' if met else 'MISSED'}: {line}" for line, met in verdicts) + "\n"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=2))
    (OUT / f"{name}.md").write_text(text)
    print(text)
    print(f"{name}:", "every bar met" if passed else "A BAR IS MISSED")
    return 0 if passed else 1
