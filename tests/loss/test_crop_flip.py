"""CropFlip: the record of a crop and a flip, its checks and its matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from cgc_kernels.transforms import CropFlip, check_structure, check_values
from tests.loss.cases import expected_aug


def crops(top=(1, 0), left=(2, 3), height=(4, 8), width=(6, 5), flip=(True, False), dtype=torch.int64):
    integers = (torch.tensor(field, dtype=dtype) for field in (top, left, height, width))
    return CropFlip(*integers, torch.tensor(flip))


@st.composite
def view_and_crop(draw):
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    height, width = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
    top, left = draw(st.integers(0, size[0] - height)), draw(st.integers(0, size[1] - width))
    return size, (top, left, height, width), draw(st.booleans())


class TestMatrix:
    @given(view_and_crop())
    @settings(max_examples=200, deadline=None)
    def test_maps_pixel_edges_and_centres_as_the_crop_does(self, case):
        (view_height, view_width), (top, left, height, width), flip = case
        matrix = CropFlip.from_torchvision([(top, left, height, width)], flip).matrix((view_height, view_width))[0]
        assert matrix.dtype == torch.float64
        corners = torch.tensor([[left - 0.5, top - 0.5, 1], [left + width - 0.5, top + height - 0.5, 1]]).double()
        start, end = (corners @ matrix.T).unbind()
        # The crop's outer edges land on the view's outer edges, left and right swapped by a flip.
        edges = (-0.5, view_width - 0.5)
        expected = torch.tensor([edges[flip], -0.5, 1.0]), torch.tensor([edges[not flip], view_height - 0.5, 1.0])
        torch.testing.assert_close(start, expected[0].double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(end, expected[1].double(), rtol=0, atol=1e-9)

    @given(view_and_crop())
    @settings(max_examples=100, deadline=None)
    def test_brute_force_over_every_pixel(self, case):
        """An image whose values are its own coordinates tells where each augmented pixel came from."""
        size, box, flip = case
        x, y = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
        crop = CropFlip.from_torchvision([box], flip)
        matrix = crop.matrix(size)[0]
        for column in range(size[1]):
            for row in {0, size[0] // 2, size[0] - 1}:
                back = torch.linalg.solve(matrix, torch.tensor([column, row, 1.0], dtype=torch.float64))
                mirrored = size[1] - 1 - column if flip else column
                source_x = box[1] + (mirrored + 0.5) * box[3] / size[1] - 0.5
                source_y = box[0] + (row + 0.5) * box[2] / size[0] - 0.5
                assert back[0].item() == pytest.approx(source_x, abs=1e-9)
                assert back[1].item() == pytest.approx(source_y, abs=1e-9)
                inside = 0 < source_x - box[1] < box[3] - 1 and 0 < source_y - box[0] < box[2] - 1
                if inside:
                    aug = expected_aug(torch.from_numpy(np.stack([x, y])).double(), [*box, flip])
                    torch.testing.assert_close(aug[:, row, column], back[:2], rtol=0, atol=1e-9)

    def test_identity_is_the_unit_matrix(self):
        crop = CropFlip.identity(3, (5, 7))
        assert torch.equal(crop.matrix((5, 7)), torch.eye(3).double().expand(3, 3, 3))
        crop.check((5, 7))

    def test_single_sample_and_batch_agree(self):
        batch = crops()
        single = CropFlip(*(field[1] for field in batch))
        assert torch.equal(single.matrix((9, 11)), batch.matrix((9, 11))[1])


class TestCropFlip:
    def test_valid_crops_pass_the_check(self):
        crops(dtype=torch.uint8).check((8, 8))
        crops(dtype=torch.int32).check((8, 9))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"top": (-1, 0)}, r"top must be at least 0, got -1 at index 0"),
            ({"left": (0, -2)}, r"left must be at least 0, got -2 at index 1"),
            ({"height": (4, 0)}, r"height must be at least 1, got 0 at index 1"),
            ({"width": (0, 0)}, r"width must be at least 1, got 0 at index 0"),
            ({"top": (1, 1)}, r"top \+ height must be at most the view's height 8, got 9 at index 1"),
            ({"left": (3, 3)}, r"left \+ width must be at most the view's width 8, got 9 at index 0"),
        ],
    )
    def test_values_outside_the_view_are_named(self, change, message):
        crop = crops(**change)
        check_structure(crop)
        with pytest.raises(ValueError, match=message):
            crop.check(8)
        with pytest.raises(ValueError, match=message):
            check_values(crop, 8)

    def test_sum_of_small_integers_does_not_wrap_around(self):
        crop = CropFlip(*(torch.tensor([value], dtype=torch.uint8) for value in (200, 0, 100, 1)), torch.tensor([True]))
        with pytest.raises(ValueError, match="got 300 at index 0"):
            crop.check(256)

    @pytest.mark.parametrize(
        ("field", "value", "error", "message"),
        [
            ("top", [0, 0], TypeError, "top must be a tensor, got list"),
            ("left", torch.zeros(2), TypeError, "left must be an integer tensor, got torch.float32"),
            ("height", torch.ones(2, dtype=torch.bool), TypeError, "height must be an integer tensor"),
            ("flip", torch.zeros(2, dtype=torch.int64), TypeError, "flip must be a bool tensor, got torch.int64"),
            ("width", torch.ones(3, dtype=torch.int64), ValueError, r"width must have shape \[2\] like top, got \[3\]"),
            ("top", torch.tensor(0), ValueError, r"top must have shape \[B\], got \[\]"),
            ("left", torch.ones(2, dtype=torch.int64, device="meta"), ValueError, "left must be on cpu like top"),
        ],
    )
    def test_structure_is_checked(self, field, value, error, message):
        crop = crops()._replace(**{field: value})
        for check in (lambda: check_structure(crop), lambda: crop.check(8)):
            with pytest.raises(error, match=message):
                check()

    @pytest.mark.parametrize(
        ("size", "error"), [(7.5, TypeError), ((8, 8, 8), TypeError), (True, TypeError), (0, ValueError)]
    )
    def test_image_size_is_checked(self, size, error):
        for call in (crops().check, crops().matrix, lambda size: CropFlip.identity(2, size)):
            with pytest.raises(error, match="image_size must be"):
                call(size)

    def test_to_moves_every_field(self):
        moved = crops().to("meta", non_blocking=True)
        assert isinstance(moved, CropFlip)
        assert {field.device.type for field in moved} == {"meta"}

    def test_from_torchvision_single(self):
        crop = CropFlip.from_torchvision((1, 2, 3, 4), True)
        assert [field.shape for field in crop] == [torch.Size([])] * 5
        assert [int(field) for field in crop] == [1, 2, 3, 4, 1]

    def test_from_torchvision_batch(self):
        crop = CropFlip.from_torchvision([(1, 2, 3, 4), (5, 6, 7, 8)], [False, True])
        assert torch.equal(torch.stack(crop[:4], 1), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
        assert crop.flip.tolist() == [False, True]
        crop = CropFlip.from_torchvision([(1, 2, 3, 4), (5, 6, 7, 8)], True)
        assert crop.flip.tolist() == [True, True]
        crop.flip[0] = False
        assert crop.flip.tolist() == [False, True]

    def test_from_torchvision_takes_the_dicts_of_v2(self):
        make = v2.RandomResizedCrop(8)
        params = [make.make_params([torch.empty(3, 20, 30)]) for _ in range(3)]
        crop = CropFlip.from_torchvision(params, flip=[True, False, True])
        assert crop.rows().tolist() == [[*own.values(), flip] for own, flip in zip(params, (1, 0, 1), strict=True)]
        crop.check((20, 30))
        assert CropFlip.from_torchvision(params[0], False).rows().tolist() == [*params[0].values(), 0]
        padded = v2.RandomCrop(8, pad_if_needed=True).make_params([torch.empty(3, 4, 4)])
        with pytest.raises(ValueError, match=r"params must hold top, left, height, width alone, .*, got needs_crop, "):
            CropFlip.from_torchvision(padded, False)

    @pytest.mark.parametrize(
        ("crop", "images", "error", "message"),
        [
            (crops(), torch.rand(3, 3, 8, 8), ValueError, r"images must be \[2, C, S_h, S_w\], .* got \[3, 3, 8, 8\]"),
            (crops(), torch.rand(2, 8, 8), ValueError, r"images must be \[2, C, S_h, S_w\], .* got \[2, 8, 8\]"),
            (crops(), torch.ones(2, 3, 8, 8).long(), TypeError, "images must be floating point or uint8"),
            (
                CropFlip(*(f[0] for f in crops())),
                torch.rand(3, 8, 8),
                ValueError,
                r"top must have shape \[B\], got \[\]",
            ),
        ],
    )
    def test_apply_refuses(self, crop, images, error, message):
        with pytest.raises(error, match=message):
            crop.apply(images)

    def test_rows_and_back(self):
        crop = crops()
        assert crop.rows().tolist() == [[1, 2, 4, 6, 1], [0, 3, 8, 5, 0]]
        for rows in (crop.rows(), crop.rows().to(torch.uint8), crop.rows()[0]):
            again = CropFlip.from_rows(rows)
            assert torch.equal(again.rows(), rows.long())
            assert again.flip.dtype == torch.bool

    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            (torch.zeros(2, 5), TypeError, "rows must be a tensor .* of integers, got torch.float32"),
            ([[0] * 5], TypeError, "rows must be a tensor .* of integers, got list"),
            (torch.zeros(5, 4, dtype=torch.int64), ValueError, r"rows must be \[B, 5\], .*, got \[5, 4\]"),
            (torch.tensor(3), ValueError, r"rows must be \[B, 5\], .*, got \[\]"),
        ],
    )
    def test_from_rows_refuses(self, rows, error, message):
        with pytest.raises(error, match=message):
            CropFlip.from_rows(rows)

    @pytest.mark.parametrize(
        ("params", "flip", "error", "message"),
        [
            ((1, 2, 3), True, ValueError, r"params must be one \(i, j, h, w\)"),
            ([], True, ValueError, "params must be one"),
            ((1, 2, 3.0, 4), True, TypeError, "params must be integers"),
            ((1, 2, 3, 4), 1, TypeError, "flip must be bool"),
            ([(1, 2, 3, 4)] * 2, [True] * 3, ValueError, "one bool or one per sample, got 3 for 2"),
        ],
    )
    def test_from_torchvision_refuses(self, params, flip, error, message):
        with pytest.raises(error, match=message):
            CropFlip.from_torchvision(params, flip)
