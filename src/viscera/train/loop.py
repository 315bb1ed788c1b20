"""The training loop: step by step, interrupted and resumed at will, on one process or many.

A run is decided by its recipe and its scans alone. What is drawn for step s depends on the seed and s, the loss of a
step is the mean over all annotated (patch, class) pairs of the whole step, however it is shared out over micro-batches
and processes, and the state is written as a whole. So a run that was killed goes on to the very weights it would have
reached.

Several processes work through Hugging Face Accelerate: it finds out from torchrun's environment (or none) what there
is, wraps the network for PyTorch's DDP and stays out of the loop; Lightning Fabric wants to launch the processes
itself and to know their number beforehand.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel

from viscera.data.assemble import Batch
from viscera.data.loader import PatchSource, patch_loader
from viscera.errors import SettingError, TrainingError
from viscera.model.checkpoint import save_checkpoint
from viscera.model.precision import computing_in, resolved_precision
from viscera.model.universal import UniversalModel
from viscera.train.loss import MaskedLoss, masked_loss
from viscera.train.recipe import LoopSettings, Recipe
from viscera.train.schedule import learning_rate
from viscera.train.state import RunState, load_state, save_state
from viscera.train.unions import with_unions

STATE, LAST, BEST = "state.pt", "last.safetensors", "best.safetensors"  # in the run's folder


@dataclass
class Tally:
    """What the loss said of one class in one set since the last report."""

    patches: int = 0  # that teach the class
    voxelwise: float = 0.0  # sums over those
    overlap: float = 0.0
    drawn: int = 0  # patches in which the class is drawn
    dice: float = 0.0  # sum of soft Dice over those

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def mean_dice(self) -> float | None:
        """Soft Dice where the class is drawn; None if it was not."""
        return self.dice / self.drawn if self.drawn else None


@dataclass(frozen=True)
class Report:
    """How a run stands, since the report before.

    loss             mean over the steps
    gradient_length  mean of it, before clipping
    wait_share       of the time spent waiting for patches, 0-1
    classes          (data set, class or "stomach|duodenum") -> its tally
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_length: float
    patches_per_s: float
    wait_share: float
    remaining_s: float
    classes: Mapping[tuple[str, str], Tally]


Validate = Callable[[UniversalModel], Mapping[str, float]]  # a model in evaluation mode -> Dice per class


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who wants to hear what; all of it happens in the first process only.

    begun      with the step the run starts from
    reported   every `log_every` steps
    validated  with (step, Dice per class)
    stop       asked after every step; True: save and leave
    """

    begun: Callable[[int], None] = lambda step: None
    reported: Callable[[Report], None] = lambda report: None
    validated: Callable[[int, Mapping[str, float]], None] = lambda step, dice: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, eq=False)
class Ended:
    """How a run ended: the model (averaged weights if the recipe averages), after `step` updates."""

    model: UniversalModel
    step: int
    complete: bool


def train(
    model: UniversalModel,
    source: PatchSource,
    recipe: Recipe,
    folder: Path,
    *,
    data: str = "",
    validate: Validate | None = None,
    listener: Listener | None = None,
    device: str = "auto",
) -> Ended:
    """Trains `model` in place, from the state in `folder` if there is one.

    data  says which scans `source` draws from; another text is another run
    Raises TrainingError for a loss or a gradient that is not a number, naming the scans of that step; SettingError
    and CheckpointError as `load_state` does.
    """
    return _Run(model, source, recipe, folder, data, validate, listener or Listener(), device).go()


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        model: UniversalModel,
        source: PatchSource,
        recipe: Recipe,
        folder: Path,
        data: str,
        validate: Validate | None,
        listener: Listener,
        device: str,
    ) -> None:
        # The other processes wait while the first segments whole scans: longer than the ten minutes they would.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
        self.engine = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[patience])
        self.recipe, self.loop, self.folder, self.data = recipe, recipe.loop, folder, data
        self.source, self.validate, self.listener = source, validate, listener
        self.model = ready_to_train(model.to(self.engine.device), recipe)
        if self.engine.num_processes > 1:
            # Of 1 x 1 x 1 kernels, whose layouts differ in name only.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        if self.engine.num_processes > 1 and self.engine.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.optimizer = torch.optim.AdamW(_groups(self.model, recipe.schedule.weight_decay), lr=0.0)
        self.averaged: AveragedModel | None = None
        if self.loop.ema:
            self.averaged = AveragedModel(self.model, multi_avg_fn=_averaging(self.loop.ema), use_buffers=True)
        self.step, self.best, self.since = 0, -1.0, _Since()
        state = load_state(folder / STATE, recipe.digest(), data)
        if state is not None:
            self.model.load_state_dict(state.model)
            if self.averaged is not None and state.averaged is not None:
                self.averaged.load_state_dict(state.averaged)
            self.optimizer.load_state_dict(state.optimizer)
            self.step, self.best = state.step, state.best
        self.net = self.engine.prepare_model(self.model)

    def go(self) -> Ended:
        if self.engine.is_main_process:
            self.listener.begun(self.step)
        every = self.recipe.validation.every
        stopped = False
        for batch in self._batches():
            stopped = self._update(batch)
            self.step += 1
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
            last = self.step == self.loop.steps
            if last or self.step % self.loop.log_every == 0:
                self._report()
            if self.validate is not None and every and (last or self.step % every == 0):
                self._validate(self.validate)
            if last or stopped or self.step % self.loop.save_every == 0:
                self._save()
            if stopped:
                break
        return Ended(self._result().eval(), self.step, self.step >= self.loop.steps)

    def _batches(self) -> Iterator[Batch]:
        """This process's share of every step to come, on its device; times the wait for it."""
        batches = iter(
            patch_loader(
                self.source,
                batch_size=self.loop.batch_size,
                start_step=self.step,
                stop_step=self.loop.steps,
                workers=self.loop.workers,
                rank=self.engine.process_index,
                world_size=self.engine.num_processes,
            )
        )
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.since.waited += time.perf_counter() - begin
            yield batch.to(self.engine.device)

    # --- one step ---

    def _update(self, batch: Batch) -> bool:
        """Changes the weights once. Returns whether some process was asked to stop."""
        torch.manual_seed((self.loop.seed * 1_000_003 + self.step) * 4_099 + self.engine.process_index)  # of dropout
        asked = self.engine.is_main_process and self.listener.stop()
        pairs, stops = self._sum(batch.pairs, asked)
        rate = learning_rate(self.step, self.loop.steps, self.recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        size = self.loop.micro_batch or len(batch)
        own = 0.0
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            with nullcontext() if start + size >= len(batch) else self.engine.no_sync(self.net):
                columns, loss = step_loss(
                    self.net, self.model, part, self.recipe, share_of=max(1, int(pairs)), step=self.step
                )
                # DDP takes the mean over processes; the loss is a sum over all of them.
                self.engine.backward(loss.total * self.engine.num_processes)
            own += float(loss.total.detach())
            self.since.note(part, columns, loss, self.source.sampler.classes)
        length = _clip(self.model, self.loop.clip_norm)
        total, faults = self._sum(own, not (math.isfinite(own) and math.isfinite(length)))
        if faults:
            self._refuse(batch.cases, total, length)
        self.optimizer.step()
        self.since.steps += 1
        self.since.loss += total
        self.since.length += length
        self.since.rate = rate
        return bool(stops)

    def _sum(self, *values: float) -> list[float]:
        """Each value added up over all processes."""
        if self.engine.num_processes == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        summed: list[float] = self.engine.reduce(tensor, "sum").tolist()
        return summed

    def _refuse(self, cases: tuple[str, ...], loss: float, length: float) -> None:
        everywhere = ", ".join(sorted(set(gather_object(list(cases)))))
        kept = self.folder / STATE
        raise TrainingError(
            f"Step {self.step}: the loss is {loss:g} and the gradient's length {length:g}; with these it cannot go on. "
            f"The step's scans were {everywhere}. Look at them with `viscera data verify`; if they are sound, lower "
            "learning_rate or clip_norm, or set precision to fp32. "
            + (f"The state before is kept in {kept}." if kept.is_file() else "No state was saved yet.")
        )

    # --- between steps ---

    def _report(self) -> None:
        merged: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        for part in gather_object([dict(self.since.classes)]):
            for key, tally in part.items():
                merged[key].add(tally)
        if self.engine.is_main_process:
            self.listener.reported(self.since.report(self.step, self.loop, merged))
        self.since = _Since()

    def _validate(self, validate: Validate) -> None:
        if self.engine.is_main_process:
            model = self._result().eval()
            dice = validate(model)
            self.listener.validated(self.step, dice)
            measured = [value for value in dice.values() if not math.isnan(value)]
            mean = sum(measured) / len(measured) if measured else -1.0
            if mean > self.best:
                self.best = mean
                save_checkpoint(model, self.folder / BEST)
        ready_to_train(self.model, self.recipe)
        self.engine.wait_for_everyone()

    def _save(self) -> None:
        if self.engine.is_main_process:
            state = RunState(
                step=self.step,
                recipe=self.recipe.digest(),
                data=self.data,
                model=self.model.state_dict(),
                averaged=None if self.averaged is None else self.averaged.state_dict(),
                optimizer=self.optimizer.state_dict(),
                best=self.best,
            )
            save_checkpoint(self._result(), self.folder / LAST)
            save_state(state, self.folder / STATE)
        self.engine.wait_for_everyone()

    def _result(self) -> UniversalModel:
        """The model as it would be handed out now: averaged where the recipe averages, knowing how it was made."""
        model = self.model if self.averaged is None else self.averaged.module
        assert isinstance(model, UniversalModel)
        scans = Counter(case.dataset for case in self.source.sampler.cases)
        summary = {"recipe": self.recipe.as_json(), "steps": self.step, "scans": dict(scans)}
        model.config = replace(model.config, trained=True, training=summary)
        return model


class _Since:
    """What is gathered from one report to the next."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.waited = self.loss = self.length = self.rate = 0.0
        self.steps = 0
        self.classes: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)

    def note(self, batch: Batch, columns: Sequence[int], loss: MaskedLoss, classes: Sequence[str]) -> None:
        """Takes up what the loss says of each taught (patch, class) pair."""
        names = [classes[column] for column in columns]
        for pair, (patch, row) in enumerate(loss.pairs.tolist()):
            name = names[row] if row < len(names) else batch.union_name(patch, row - len(names), classes)
            drawn, overlap = int(loss.drawn[pair]), float(loss.overlap[pair])
            dataset = batch.cases[patch].partition("/")[0]
            self.classes[dataset, name].add(
                Tally(1, float(loss.voxelwise[pair]), overlap, drawn, drawn * (1 - overlap))
            )

    def report(self, step: int, loop: LoopSettings, classes: Mapping[tuple[str, str], Tally]) -> Report:
        seconds = time.perf_counter() - self.begin
        return Report(
            step=step,
            steps=loop.steps,
            loss=self.loss / self.steps,
            learning_rate=self.rate,
            gradient_length=self.length / self.steps,
            patches_per_s=self.steps * loop.batch_size / seconds,
            wait_share=self.waited / seconds,
            remaining_s=(loop.steps - step) * seconds / self.steps,
            classes=classes,
        )


def ready_to_train(model: UniversalModel, recipe: Recipe) -> UniversalModel:
    """The model in training mode, a frozen backbone fixed with its running statistics, laid out for speed.

    Raises SettingError for patches too small for bf16.
    """
    _require_sound_gradients(model, recipe)
    model.train()
    if recipe.freeze_backbone:
        model.backbone.requires_grad_(False).eval()
    if _channels_last(model, recipe):
        model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model


def _require_sound_gradients(model: UniversalModel, recipe: Recipe) -> None:
    """On a CPU, torch 2.13 fills the weight gradients of bf16 convolutions over maps of two voxels with garbage."""
    device, least = model.organ_embedding.device, 3 * model.backbone.multiple
    sides = recipe.sampling.patch_voxels
    if min(sides) < least and device.type == "cpu" and resolved_precision(recipe.loop.precision, device) == "bf16":
        raise SettingError(
            f"The patches are {' x '.join(map(str, sides))} voxels. With bf16 on a CPU this network needs at least "
            f"{least} on every side: PyTorch's gradients are wrong for smaller ones. Take larger patches, or set "
            'precision = "fp32" in [loop].'
        )


def _channels_last(model: UniversalModel, recipe: Recipe) -> bool:
    # torch 2.13 crashes in the backward pass of a group norm over channels-last maps that need no gradient themselves.
    return model.backbone.prefers_channels_last and not recipe.freeze_backbone


def step_loss(
    net: Callable[..., torch.Tensor],
    model: UniversalModel,
    batch: Batch,
    recipe: Recipe,
    share_of: int | None = None,
    step: int = 0,
) -> tuple[list[int], MaskedLoss]:
    """The loss of some patches, and the classes it was computed for: those that a patch teaches, and no other.

    net   `model`, or what wraps it for several processes
    step  decides at which voxels it is computed, where the recipe's voxel_stride is above 1
    """
    columns = batch.taught or [0]  # with nothing taught the graph still needs one class
    voxels = _lattice(recipe.loop, step)
    part = batch.of_classes(columns).at(voxels)
    image = part.image
    if _channels_last(model, recipe):
        image = image.contiguous(memory_format=torch.channels_last_3d)
    with computing_in(recipe.loop.precision, image.device):
        logits = net(image, columns, voxels)
    return columns, masked_loss(*with_unions(logits, part), recipe.loss, share_of)


def _lattice(loop: LoopSettings, step: int) -> tuple[slice, slice, slice]:
    """Every `voxel_stride`-th voxel on each axis, from a corner drawn for this step."""
    x, y, z = np.random.default_rng([loop.seed, step]).integers(loop.voxel_stride, size=3).tolist()
    return slice(x, None, loop.voxel_stride), slice(y, None, loop.voxel_stride), slice(z, None, loop.voxel_stride)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _clip(model: nn.Module, longest: float) -> float:
    """Shortens the gradient to `longest` and returns the length it had.

    Summed in float64: DDP lays gradients out differently, and the order of a float32 sum would change the weights.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    lengths = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    length = float(torch.linalg.vector_norm(torch.stack(lengths)))
    if length > longest:
        torch._foreach_mul_(gradients, longest / length)
    return length


def _averaging(decay: float) -> Callable[..., None]:
    """An exponential moving average whose memory grows at the start, so that it forgets the random weights."""

    @torch.no_grad()
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], seen: torch.Tensor) -> None:
        n = int(seen)
        share = 1 - min(decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)

    return average
