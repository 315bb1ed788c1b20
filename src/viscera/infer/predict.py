"""From a prepared scan to soft masks: which windows, which precision, which device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from viscera.errors import SettingError
from viscera.infer.collect import SoftMaskCollector
from viscera.infer.prepare import Prepared
from viscera.infer.runtime import Encode, Runtime, check_runtime, resolved_runtime, vision_encoder
from viscera.infer.window import Progress, Slab, stream_windows
from viscera.masks import MaskSet
from viscera.model.config import Mode
from viscera.model.precision import Precision, resolved_precision
from viscera.model.universal import UniversalModel
from viscera.shapes import Triple, triple

# One pass of the light network takes about 75 bytes a voxel (0.44 GB for 160 x 128 x 288); a larger scan goes through
# windows. At 3 mm this many voxels are 0.43 cubic metres: no patient is that large.
LARGEST_PASS_VOXELS = 16_000_000
_SLAB = 32  # slices of a one-pass answer that are decoded at once


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How to run a network. `None` means: as the model's checkpoint says.

    precision  "fp32" is exact; "bf16" is about twice as fast where the processor has it; "auto" takes bf16 there
    overlap    part of a window shared with its neighbour, 0 <= overlap < 1
    device     "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps"
    runtime    "torch", "openvino" (on a CPU), or "auto": see `viscera.infer.runtime.resolved_runtime`
    """

    precision: Precision = "auto"
    overlap: float | None = None
    device: str = "auto"
    runtime: Runtime = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SettingError(f"The precision is {self.precision!r}; it must be auto, fp32 or bf16.")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise SettingError(f"The overlap is {self.overlap}; it must be at least 0 and less than 1.")

    def resolved(self, mode: Mode | None = None) -> InferenceSettings:
        """The same with "auto" replaced by what this machine has.

        mode  how the model is run; without it the runtime is checked and left as it is

        Raises SettingError for a device or runtime that cannot be used here.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise SettingError(f"The device {device!r} cannot be used here ({reason}). Try --device cpu.") from error
        place = torch.device(device)
        check_runtime(self.runtime, place)
        runtime = self.runtime if mode is None else resolved_runtime(self.runtime, place, mode)
        return replace(self, device=device, precision=resolved_precision(self.precision, place), runtime=runtime)


def predict(
    model: UniversalModel,
    prepared: Prepared,
    classes: Sequence[str],
    settings: InferenceSettings | None = None,
    progress: Progress | None = None,
    keep_from: Mapping[str, float] | None = None,
) -> MaskSet:
    """Soft masks of the asked classes on the network's grid; every key of `classes` is present, in that order.

    model      in evaluation mode
    classes    keys of the model's classes
    progress   called with (steps done, steps in all)
    keep_from  class -> the least probability whose voxels are kept too; by default only what is in, and one voxel more

    Deterministic on a CPU. Only what is asked for is computed, and no class depends on which others are asked for.
    """
    config = model.config
    settings = (settings or InferenceSettings()).resolved(config.inference.mode)
    channels = [config.classes.index(key) for key in classes]
    device = torch.device(settings.device)
    model = model.to(device).eval()
    image = torch.from_numpy(prepared.image)[None].to(device)
    collector = SoftMaskCollector(
        triple(image.shape[1:]),
        [config.thresholds.get(key, 0.5) for key in classes],
        [(keep_from or {}).get(key) for key in classes],
    )
    with torch.inference_mode():
        for slab in _slabs(model, image, channels, settings, progress):
            collector.add(slab)
    masks = {
        key: soft if soft.box.is_empty else replace(soft, box=soft.box.shifted(prepared.box.start))
        for key, soft in zip(classes, collector.finish(), strict=True)
    }
    return MaskSet(prepared.grid_shape, prepared.grid_spacing_mm, masks)


def _slabs(
    model: UniversalModel,
    image: torch.Tensor,
    channels: Sequence[int],
    settings: InferenceSettings,
    progress: Progress | None,
) -> Iterator[Slab]:
    inference = model.config.inference
    if inference.mode == "whole" and image.numel() <= LARGEST_PASS_VOXELS:
        return _one_pass(model, image, channels, settings, progress)

    encode = _encoder(model, inference.patch_voxels, settings)

    def decode(encoded: tuple[torch.Tensor, torch.Tensor], classes: slice, z: slice) -> torch.Tensor:
        features, embedding = encoded
        return model.decode(features[..., z], embedding, channels[classes])[0]

    overlap = inference.overlap if settings.overlap is None else settings.overlap
    return stream_windows(image, encode, decode, len(channels), inference.patch_voxels, overlap, progress=progress)


def _encoder(model: UniversalModel, shape: Triple, settings: InferenceSettings) -> Encode:
    device = torch.device(settings.device)
    return vision_encoder(model, shape, runtime=settings.runtime, precision=settings.precision, device=device)


def _one_pass(
    model: UniversalModel,
    image: torch.Tensor,
    channels: Sequence[int],
    settings: InferenceSettings,
    progress: Progress | None,
) -> Iterator[Slab]:
    """The whole image through the vision branch once; the head follows slab by slab."""
    size = triple(image.shape[1:])
    multiple, minimum = model.backbone.multiple, model.backbone.minimum_voxels
    # Air on the far sides, up to what the network can divide.
    padded = triple(max(minimum, -(-n // multiple) * multiple) for n in size)
    sides = [side for n, p in zip(reversed(size), reversed(padded), strict=True) for side in (0, p - n)]
    whole = torch.nn.functional.pad(image, sides)[None]
    features, embedding = _encoder(model, padded, settings)(whole)
    total = -(-size[2] // _SLAB) + 1
    if progress is not None:
        progress(1, total)
    for step, z in enumerate(range(0, size[2], _SLAB), start=2):
        part = features[:, :, : size[0], : size[1], z : min(z + _SLAB, size[2])]
        yield Slab(z, model.decode(part, embedding, channels)[0])
        if progress is not None:
            progress(step, total)
