"""What comes out of a parcel is what went in, tensors of all kinds and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.training.small import frames_of, labels
from triforces_deploy.training.parcel import unwrapped, wrapped
from triforces_deploy.training.structures import Sample


class Things(NamedTuple):
    numbers: Tensor
    nothing: Tensor | None
    more: dict[str, Tensor]
    key: int


def test_everything_comes_out_as_it_went_in() -> None:
    matrix = torch.arange(12, dtype=torch.float64).view(3, 4)
    given = [
        Things(torch.arange(5), None, {"flags": torch.tensor([True, False]), "none": torch.zeros(0, 3)}, 7),
        Things(matrix.T, None, {"cut": matrix[:, ::2], "one": torch.tensor(2.5)}, 8),
    ]
    parcel = wrapped(given)
    found = unwrapped(parcel)
    for one, two in zip(given, found, strict=True):
        assert type(two) is Things
        assert (two.nothing, two.key) == (None, one.key)
        for a, b in [(one.numbers, two.numbers), *((one.more[k], two.more[k]) for k in one.more)]:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert found[0].numbers.untyped_storage().data_ptr() >= parcel.content.data_ptr()
    found[0].numbers[0] = 9  # what is trained on may be changed in place
    assert int(parcel.content[:8].view(torch.int64)) == 9


def test_a_batch_is_the_same_to_the_bit(tmp_path: Path) -> None:
    sample = frames_of(labels(tmp_path, trajectories=1, frames=1))[0].sample
    found = unwrapped(wrapped(sample))
    assert type(found) is Sample
    for one, two in zip([*sample.graph, *sample[1:4]], [*found.graph, *found[1:4]], strict=True):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
