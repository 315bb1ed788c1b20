"""From drawn labels to what the loss sees: targets by a lookup table at patch time, and who annotated what.

A patch is stored as codes (one byte a voxel); its targets are ``table[:, codes]``:

    codes   0 1 2        table   liver     0 1 1        targets   liver     0 1 1
                                 tumour    0 0 1                  tumour    0 0 1

Dense targets of all classes never exist on disk. What a set does not annotate is told by `annotated`, beside the
targets and never by a value in them: a class that is annotated and absent in a scan is a true negative there, one
that is not annotated is unknown. What was drawn as one ("stomach or duodenum") is a union: a row of its own that
is 1 where either is drawn, with the classes it joins; the classes themselves count as not annotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from viscera.data.catalogue import Source
from viscera.data.drawing import Meaning


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What the codes of one scan mean for the classes of one model.

    rows           bool [C + U, K]: is code k in class c; then is it in union u (U may be 0)
    annotated      bool [C]: does this scan teach class c
    union_members  bool [U, C]: which classes union u joins
    """

    rows: torch.Tensor
    annotated: torch.Tensor
    union_members: torch.Tensor


def label_table(
    meanings: Sequence[Meaning],
    sources: Sequence[Source],
    annotated: Sequence[str],
    unions: Sequence[tuple[str, ...]],
    classes: Sequence[str],
) -> LabelTable:
    """The table of a scan whose code k means ``meanings[k]``, for a model with `classes` in this order.

    annotated  keys of the classes this scan's set draws; those the model does not have are passed over
    unions     what the set draws as one; a union of which the model lacks a member teaches nothing and is left out
    """
    by_value = {source.value: source for source in sources}
    whole = [union for union in unions if set(union) <= set(classes)]
    rows = torch.zeros(len(classes) + len(whole), len(meanings), dtype=torch.bool)
    for code, meaning in enumerate(meanings):
        certain = {key for drawn in meaning for key in by_value[drawn.value].on(drawn.side)}
        possible = [set(by_value[drawn.value].union) for drawn in meaning]
        for row, key in enumerate(classes):
            rows[row, code] = key in certain
        for row, union in enumerate(whole, start=len(classes)):
            rows[row, code] = not certain.isdisjoint(union) or set(union) in possible
    return LabelTable(
        rows,
        torch.tensor([key in set(annotated) for key in classes], dtype=torch.bool),
        torch.tensor([[key in union for key in classes] for union in whole], dtype=torch.bool).view(-1, len(classes)),
    )


def lookup(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """``rows[:, codes]``: uint8 [R, *codes.shape] from rows bool [R, K] and integer codes, each 0 <= code < K."""
    index = codes.reshape(-1).to(torch.int32)
    out = torch.zeros(len(rows), index.numel(), dtype=torch.uint8, device=codes.device)
    # One row at a time: three times faster than indexing all at once, and most rows of a partly labelled scan are 0.
    for row in rows.any(1).nonzero().flatten().tolist():
        torch.index_select(rows[row].to(torch.uint8), 0, index, out=out[row])
    return out.view(len(rows), *codes.shape)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step sees.

    image          float32 [B, 1, X, Y, Z] in [0, 1]: HU within the model's window, RAS axes
    target         uint8 [B, C, X, Y, Z]: 1 where the class is drawn; only to be looked at where `annotated`
    annotated      bool [B, C]: does this scan teach this class
    union_target   uint8 [B, U, X, Y, Z]: 1 where one of the union's classes is drawn; U is 0 in most batches
    union_members  bool [B, U, C]: the classes of each union; a row without any is padding and teaches nothing
    cases          B ids, "lits/17"
    """

    image: torch.Tensor
    target: torch.Tensor
    annotated: torch.Tensor
    union_target: torch.Tensor
    union_members: torch.Tensor
    cases: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(
            self.image.to(device),
            self.target.to(device),
            self.annotated.to(device),
            self.union_target.to(device),
            self.union_members.to(device),
            self.cases,
        )

    def __len__(self) -> int:
        return len(self.cases)

    def part(self, start: int, stop: int) -> Batch:
        """Patches ``start:stop``."""
        here = slice(start, stop)
        return Batch(
            self.image[here],
            self.target[here],
            self.annotated[here],
            self.union_target[here],
            self.union_members[here],
            self.cases[here],
        )

    def at(self, voxels: tuple[slice, ...]) -> Batch:
        """The targets at these voxels only (a slice for each axis); the image stays whole."""
        return replace(self, target=self.target[:, :, *voxels], union_target=self.union_target[:, :, *voxels])

    @property
    def pairs(self) -> int:
        """How many (patch, class) and (patch, union) pairs it teaches."""
        return int(self.annotated.sum() + self.union_members.any(2).sum())

    def union_name(self, patch: int, union: int, classes: Sequence[str]) -> str:
        """A union of patch number `patch` as people read it: "stomach|duodenum"."""
        return "|".join(key for key, member in zip(classes, self.union_members[patch, union], strict=True) if member)

    @property
    def taught(self) -> list[int]:
        """The classes (columns) that at least one patch teaches, alone or in a union."""
        taught = self.annotated.any(0) | self.union_members.flatten(0, 1).any(0)
        return [int(column) for column in taught.nonzero()]

    def of_classes(self, columns: Sequence[int]) -> Batch:
        """The batch of a model with only these classes; they must hold all `taught` ones."""
        chosen = list(columns)
        return Batch(
            self.image,
            self.target[:, chosen],
            self.annotated[:, chosen],
            self.union_target,
            self.union_members[..., chosen],
            self.cases,
        )


def collate(
    images: Sequence[torch.Tensor], codes: Sequence[torch.Tensor], tables: Sequence[LabelTable], cases: Sequence[str]
) -> Batch:
    """B patches as one batch: images float32 [X, Y, Z], codes integer [X, Y, Z], the scan's table for each."""
    unions = max(len(table.union_members) for table in tables)
    number = tables[0].annotated.numel()
    targets = [lookup(table.rows, patch) for table, patch in zip(tables, codes, strict=True)]
    union_target = torch.zeros(len(tables), unions, *images[0].shape, dtype=torch.uint8)
    union_members = torch.zeros(len(tables), unions, number, dtype=torch.bool)
    for b, (table, target) in enumerate(zip(tables, targets, strict=True)):
        union_target[b, : len(table.union_members)] = target[number:]
        union_members[b, : len(table.union_members)] = table.union_members
    return Batch(
        torch.stack(list(images))[:, None],
        torch.stack([target[:number] for target in targets]),
        torch.stack([table.annotated for table in tables]),
        union_target,
        union_members,
        tuple(cases),
    )
