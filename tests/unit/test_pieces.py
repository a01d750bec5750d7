"""Cuts of weights: what one tensor rank takes, and putting the parts of all together again. Needs torch, no ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from launcher.train.pieces import Cut  # noqa: E402

WHOLE = torch.arange(24).view(4, 6)


def test_a_cut_takes_its_ranges_in_order():
    cut = Cut(dim=1, ranges=((4, 6), (0, 1)))

    assert cut.of(WHOLE).tolist() == [[4, 5, 0], [10, 11, 6], [16, 17, 12], [22, 23, 18]]
    assert cut.shape_of(WHOLE.shape) == (4, 3)


def test_a_part_is_a_copy_and_contiguous():
    """A view would keep the whole weight in memory, and training would write into a mapped file."""
    whole = WHOLE.clone()
    for cut in (Cut(dim=0, ranges=((0, 4),)), Cut(dim=1, ranges=((2, 4),)), Cut(dim=0, ranges=((0, 2), (2, 4)))):
        part = cut.of(whole)
        part.zero_()
        assert part.is_contiguous()
        assert torch.equal(whole, WHOLE)


@given(st.integers(0, 1), st.permutations(range(6)), st.integers(1, 3))
def test_parts_that_cover_a_weight_give_it_back(dim, order, parts):
    whole = torch.arange(6 * 6).view(6, 6)
    cuts = [Cut(dim=dim, ranges=tuple((row, row + 1) for row in order[part::parts])) for part in range(parts)]
    again = torch.full_like(whole, -1)
    for cut in cuts:
        part = cut.of(whole)
        assert part.shape == cut.shape_of(whole.shape)
        cut.put(again, part)

    assert torch.equal(again, whole)
