"""One door to the ways of computing the vision branch: torch, or OpenVINO on a processor.

Both compute the same network, fused for evaluation (`Backbone.fused`). The head after it is always ours, in torch and
float32: it needs the classes asked for, and it is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import nn

from viscera.errors import SettingError
from viscera.model.backbones.blocks import ConvOfImage, UpThenConv, with_each, with_parts
from viscera.model.norm import CPUGroupNorm
from viscera.model.precision import Precision, computing_in
from viscera.model.universal import UniversalModel
from viscera.shapes import Triple

Runtime = Literal["auto", "torch", "openvino"]
Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""image [1, 1, X, Y, Z] in [0, 1] -> features [1, 8, X, Y, Z] and image embedding [1, 256]"""

_WAY_OUT = "Install it with: pip install 'viscera[openvino]', or use --runtime torch."


def has_openvino() -> bool:
    """Whether the package is there; it is not imported."""
    return find_spec("openvino") is not None


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises SettingError unless `runtime` is one of the known ones and can be used on `device`."""
    if runtime not in get_args(Runtime):
        raise SettingError(f"The runtime is {runtime!r}; it must be {', '.join(get_args(Runtime)[:-1])} or openvino.")
    if runtime != "openvino":
        return
    if not has_openvino():
        raise SettingError(f"--runtime openvino needs the package openvino, which is not installed. {_WAY_OUT}")
    if device.type != "cpu":
        raise SettingError(f"--runtime openvino computes on the processor, not on {device}: use --device cpu with it.")


def fused(model: UniversalModel, *, bf16: bool = False) -> UniversalModel:
    """The same model with its backbone fused for evaluation; it shares the other weights with `model`.

    bf16  for torch in bfloat16 on a CPU
    """
    return with_parts(model, backbone=model.backbone.fused(bf16=bf16)).eval()


def vision_encoder(
    model: UniversalModel, shape: Triple, *, runtime: Runtime, precision: Precision, device: torch.device
) -> Encode:
    """The vision branch of `model` for images of `shape` [X, Y, Z], ready to be called.

    runtime and precision are resolved; the model is in evaluation mode and on `device`. The features come in the
    precision they were computed in.
    """
    with torch.inference_mode(False):  # else shared weights would become tensors of that mode for good
        if runtime == "openvino":
            from viscera.infer.exported import openvino_encoder

            return openvino_encoder(model, shape, precision)
        return _torch_encoder(model, precision, device)


def _torch_encoder(model: UniversalModel, precision: Precision, device: torch.device) -> Encode:
    on_cpu = device.type == "cpu"
    quick = fused(model, bf16=on_cpu and precision == "bf16")
    last = quick.backbone.prefers_channels_last
    if on_cpu:
        quick = with_parts(quick, GAP=_cpu_norm_first(model.GAP), precls_conv=_cpu_norm_first(model.precls_conv))
    if precision == "bf16":
        quick = with_each(quick, _in_bf16)
    if last:
        quick = quick.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        with computing_in(precision, device):
            features, embedding = quick.encode(image)
        return features, embedding.float()

    return encode


def _in_bf16(part: nn.Module) -> nn.Module | None:
    """The same layer with weights in bfloat16, which autocast would convert for every window; that of the image stays
    in float32."""
    if isinstance(part, nn.Conv3d) and part.in_channels == 1:
        return ConvOfImage(part)
    if not isinstance(part, nn.Conv3d | nn.ConvTranspose3d | nn.Linear | UpThenConv):
        return None
    twin = with_parts(part)
    twin._parameters = {
        name: None if weight is None else nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        for name, weight in part._parameters.items()
    }
    return twin


def _cpu_norm_first(layers: nn.Sequential) -> nn.Sequential:
    """The same layers; the group norm and the ReLU that they begin with need less memory and time."""
    norm, _, *others = layers
    assert isinstance(norm, nn.GroupNorm)
    return nn.Sequential(CPUGroupNorm(norm), nn.ReLU(inplace=True), *others)
