"""From identified labels to passes: which runs of bridge and decoder a batch needs, and no more.

The release runs 2 + |A| whole networks for an image with identified labels A. One pass per label and one for all labels
together is enough, and with a single label those two are the same pass (SPEC section 9, identity 4): 0, 1 or |A| + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of B images; those of one image lie together, the pass of all its labels first.

    labels         ``[P,L]``, the y of SPEC section 4: the scores of the pass's labels, 0 elsewhere
    image_of_pass  ``[P]`` int64, on the CPU
    classes        of each image: the class indices it is segmented into, ascending
    """

    labels: Tensor
    image_of_pass: Tensor
    classes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """P."""
        return len(self.labels)

    def counts(self) -> list[int]:
        """Passes of each image."""
        return [passes_of(len(classes)) for classes in self.classes]


def passes_of(num_classes: int) -> int:
    """Passes that an image with this many labels needs (identity 4)."""
    return num_classes if num_classes < 2 else num_classes + 1


def identify(scores: Tensor, threshold: float = 0.5) -> list[list[int]]:
    """Class indices with a score above `threshold`, of each image; scores ``[B,L]`` (SPEC section 3)."""
    return [row.nonzero().flatten().tolist() for row in (scores > threshold).cpu()]


def plan_passes(scores: Tensor, chosen: Sequence[Sequence[int]]) -> Passes:
    """Passes that segment each image into its chosen classes (SPEC section 7, identities 2 and 4).

    scores ``[B,L]`` image-level scores, chosen: class indices of each image (any order, repeats count once).
    Raises InputError if the two disagree about B or an index is not a class.
    """
    if scores.dim() != 2 or len(chosen) != len(scores):
        raise InputError(f"scores: wanted [{len(chosen)},L], one row an image, got {list(scores.shape)}")
    scores = scores.detach().cpu()
    num_classes = scores.shape[1]
    classes = tuple(tuple(sorted(set(indices))) for indices in chosen)
    rows: list[Tensor] = []
    image_of_pass: list[int] = []
    for image, indices in enumerate(classes):
        if indices and not 0 <= indices[0] <= indices[-1] < num_classes:
            raise InputError(f"chosen: wanted class indices 0 to {num_classes - 1}, got {list(indices)}")
        groups = [[index] for index in indices]
        if len(indices) > 1:
            groups.insert(0, list(indices))
        for group in groups:
            row = torch.zeros_like(scores[image])
            row[group] = scores[image, group]
            rows.append(row)
            image_of_pass.append(image)
    labels = torch.stack(rows) if rows else scores.new_zeros(0, num_classes)
    return Passes(labels, torch.tensor(image_of_pass, dtype=torch.int64, device="cpu"), classes)


def even_slices(count: int, most: int) -> list[slice]:
    """0..count in as few slices of at most `most` as there can be, none longer than another by more than one."""
    parts = -(-count // most)
    return [slice(k * count // parts, (k + 1) * count // parts) for k in range(parts)]
