"""The front door: what `import viscera` promises, and how fast it opens."""

from __future__ import annotations

import subprocess
import sys

import pytest

import viscera

HEAVY = {"torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "matplotlib", "transformers", "pydicom"}


def test_all_is_sorted_and_everything_in_it_exists():
    assert viscera.__all__ == sorted(viscera.__all__)
    for name in viscera.__all__:
        assert getattr(viscera, name) is not None
    assert set(viscera.__all__) - {"__version__"} == set(viscera._HOME)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        viscera.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["classes"], ["classes", "lungs"], ["segment", "--help"]]
)
def test_nothing_heavy_is_loaded_before_it_is_needed(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['viscera', *{arguments!r}]\n"
        "from viscera.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("LOADED []")
