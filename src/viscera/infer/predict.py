"""From a prepared scan to soft masks: which windows, which precision, which device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from viscera.errors import SettingError
from viscera.heap import apart, memory_kept
from viscera.infer.collect import SoftMaskCollector
from viscera.infer.memory import Sizes, Tiling, chosen_tiling, padded_size
from viscera.infer.prepare import Prepared
from viscera.infer.runtime import Encode, Runtime, check_runtime, vision_encoder
from viscera.infer.window import SLAB, Logits, Progress, Slab, class_groups, stream_windows
from viscera.masks import MaskSet
from viscera.model.precision import Precision, resolved_precision
from viscera.model.universal import UniversalModel
from viscera.shapes import Box, Triple, triple

_WORTH_COMPILING = 3e8  # voxels of all windows x classes: torch's heads take two seconds for them, numba one to start


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How to run a network. `None` means: as the model's checkpoint says.

    precision  "fp32" is exact; "bf16" is several times as fast where the processor has it; "auto" takes bf16 there
    overlap    part of a window shared with its neighbour, 0 <= overlap < 1
    device     "auto" (a CUDA device if there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps"
    runtime    "torch", "openvino" (on a CPU), or "auto": torch, in which our layers are quicker (bench/runtimes.py)
    max_memory_bytes  what the process may take while it segments one scan: see `viscera.infer.memory`; None: no limit
    """

    precision: Precision = "auto"
    overlap: float | None = None
    device: str = "auto"
    runtime: Runtime = "auto"
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SettingError(f"The precision is {self.precision!r}; it must be auto, fp32 or bf16.")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise SettingError(f"The overlap is {self.overlap}; it must be at least 0 and less than 1.")
        if self.max_memory_bytes is not None and self.max_memory_bytes <= 0:
            raise SettingError(f"The memory allowed is {self.max_memory_bytes} bytes; it must be more than 0.")

    def resolved(self) -> InferenceSettings:
        """The same with "auto" replaced by what this machine has.

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
        runtime: Runtime = "torch" if self.runtime == "auto" else self.runtime
        return replace(self, device=device, precision=resolved_precision(self.precision, place), runtime=runtime)


def tiling(model: UniversalModel, prepared: Prepared, settings: InferenceSettings) -> Tiling:
    """How `predict` will go over a scan. Raises SettingError if the memory allowed is too little."""
    inference = model.config.inference
    settings = settings.resolved()
    return chosen_tiling(
        model,
        Sizes(prepared.scan_shape, prepared.grid_shape, prepared.box.shape),
        overlap=inference.overlap if settings.overlap is None else settings.overlap,
        precision=settings.precision,
        runtime=settings.runtime,
        max_bytes=settings.max_memory_bytes,
    )


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
    settings = (settings or InferenceSettings()).resolved()
    channels = [config.classes.index(key) for key in classes]
    device = torch.device(settings.device)
    model = model.to(device).eval()
    image = torch.from_numpy(prepared.image)[None].to(device)
    collector = SoftMaskCollector(
        triple(image.shape[1:]),
        [config.thresholds.get(key, 0.5) for key in classes],
        [(keep_from or {}).get(key) for key in classes],
    )
    with memory_kept(), torch.inference_mode():
        for slab in _slabs(
            model, image, channels, settings, tiling(model, prepared, settings), prepared.reaches_body, progress
        ):
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
    plan: Tiling,
    wanted: Callable[[Box], bool],
    progress: Progress | None,
) -> Iterator[Slab]:
    if plan.window is None:
        return _one_pass(model, image, channels, settings, plan.buffer_values, progress)

    overlap = model.config.inference.overlap if settings.overlap is None else settings.overlap
    # By the model's classes, not by those asked for: no class depends on which others are.
    work = len(model.config.classes) * image[0].numel() / (1 - overlap) ** 3
    encode = _encoder(model, plan.window, settings)

    def keep(encoded: tuple[torch.Tensor, torch.Tensor], z: slice) -> tuple[torch.Tensor, torch.Tensor]:
        features, embedding = encoded
        return apart(features[..., z]), apart(embedding)

    def decode(encoded: tuple[torch.Tensor, torch.Tensor], classes: slice) -> Logits:
        features, embedding = encoded
        heads = model.heads(embedding, channels[classes], compiled=work >= _WORTH_COMPILING)[0]
        return lambda x, z: heads(features[0, :, x, :, z])

    return stream_windows(
        image,
        encode,
        keep,
        decode,
        len(channels),
        plan.window,
        overlap,
        wanted=wanted,
        buffer_values=plan.buffer_values,
        progress=progress,
    )


def _encoder(model: UniversalModel, shape: Triple, settings: InferenceSettings) -> Encode:
    device = torch.device(settings.device)
    return vision_encoder(model, shape, runtime=settings.runtime, precision=settings.precision, device=device)


def _one_pass(
    model: UniversalModel,
    image: torch.Tensor,
    channels: Sequence[int],
    settings: InferenceSettings,
    buffer_values: int,
    progress: Progress | None,
) -> Iterator[Slab]:
    """The whole image through the vision branch once; the head follows slab by slab."""
    size = triple(image.shape[1:])
    # Air on the far sides, up to what the network can divide.
    padded = padded_size(size, model.backbone.multiple, model.backbone.minimum_voxels)
    sides = [side for n, p in zip(reversed(size), reversed(padded), strict=True) for side in (0, p - n)]
    whole = torch.nn.functional.pad(image, sides)[None]
    features, embedding = _encoder(model, padded, settings)(whole)
    total = -(-size[2] // SLAB) + 1
    if progress is not None:
        progress(1, total)
    for step, z in enumerate(range(0, size[2], SLAB), start=2):
        part = features[:, :, : size[0], : size[1], z : min(z + SLAB, size[2])]
        for group in class_groups(len(channels), part[0, 0].numel(), buffer_values):
            yield Slab(z, model.decode(part, embedding, channels[group])[0], group.start)
        if progress is not None:
            progress(step, total)
