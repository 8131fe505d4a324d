"""Operators called directly refuse what would read out of bounds."""

import pytest
import torch

from cgc_kernels.options import OBJECTIVES
from tests.operators.test_ops import needs_library, op


@needs_library
class TestGuards:
    """Operators called directly refuse what would read out of bounds."""

    def refused(self, name, *arguments, match=""):
        with pytest.raises(RuntimeError, match=rf", {match}.* must .*, got "):
            op(name)(*arguments)

    def test_cam(self):
        x = torch.rand(2, 3, 4, 5)
        self.refused("cam", x[0], x, True, match="features")
        self.refused("cam", x, x[:, :2], True, match="gradients")
        self.refused("cam", x, x.double(), True, match="gradients")
        self.refused("cam", x.double(), x, True, match="gradients")
        self.refused("cam", x[..., ::2], x[..., ::2], True, match="features")
        self.refused("cam", x, x.contiguous(memory_format=torch.channels_last), True, match="gradients")
        self.refused("cam", x.int(), x.int(), True, match="features")
        self.refused("cam", x, torch.rand(2, 4), False, match="gradients")

    def test_cam_backward(self):
        x, maps = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5)
        self.refused("cam_backward", maps[:1], maps, x, x, True, True, match="grad_heatmaps")
        self.refused("cam_backward", maps, maps.double(), x, x, True, True, match="heatmaps")
        self.refused("cam_backward", maps.mT.contiguous().mT, maps, x, x, True, True, match="grad_heatmaps")

    def test_resample(self):
        maps, crops = torch.rand(2, 4, 5), self.crops()
        rest = (8, 8, 1e-8, 0)
        self.refused("resample", maps, maps[:, :3], crops, *rest, match="aug_heatmaps")
        self.refused("resample", maps, maps.double(), crops, *rest, match="aug_heatmaps")
        self.refused("resample", maps, maps, [c[:1] for c in crops], *rest, match=r"transform\[0\]")
        self.refused("resample", maps, maps, [*crops[:4], crops[4].float()], *rest, match=r"transform\[4\]")
        self.refused("resample", maps, maps, crops[:4], *rest, match="transform")
        self.refused("resample", maps, maps, [], *rest, match="transform")
        self.refused("resample", maps, maps, [torch.eye(3).expand(2, 3, 3)], *rest, match="transform")
        self.refused("resample", maps, maps, crops, 0, 8, 1e-8, 0, match="height and width")
        self.refused("resample", maps, maps, crops, 8, 8, 1e-8, len(OBJECTIVES), match="objective")
        self.refused("resample", maps.half(), maps.half(), crops, *rest, match="heatmaps")

    def test_resample_backward(self):
        maps, crops = torch.rand(2, 4, 5), self.crops()
        rest = (8, 8, 1e-8, 0)
        rows, keys, positives, state = op("resample")(maps, maps, crops, *rest)
        right = {"grad_rows": rows, "grad_keys": keys, "grad_positives": positives, "heatmaps": maps}
        right |= {"aug_heatmaps": maps, "rows": rows, "keys": keys, "positives": positives}
        right |= {"transform": crops, "state": state}
        op("resample_backward")(*right.values(), *rest)
        for name, given in right.items():
            wrong = [f[:1] for f in crops] if name == "transform" else given[:1]
            self.refused("resample_backward", *{**right, name: wrong}.values(), *rest)
            if name not in ("transform", "heatmaps"):
                halves = {**right, name: given.half()}
                self.refused("resample_backward", *halves.values(), *rest, match=name)

    def test_contrast(self):
        rows, positives = torch.rand(4, 5), torch.rand(4, dtype=torch.float64)
        rest = (0, 4, 0.5)
        self.refused("contrast", rows, rows[:3], positives, *rest, match="keys")
        self.refused("contrast", rows, rows, positives.float(), *rest, match="positives")
        self.refused("contrast", rows, rows.T.contiguous().T, positives, *rest, match="keys")
        self.refused("contrast_backward", rows, rows, rows, positives, positives, *rest, match="grad_loss")
        loss, losses = op("contrast")(rows, rows, positives, 1, 2, 0.5)
        self.refused("contrast_backward", loss, rows, rows, positives, losses, 1, 2, 0.5, match="row_losses")
        for share in ((-1, 2), (4, 1), (1, 0), (0, 5), (2, 3)):
            name = "count" if 0 <= share[0] < 4 else "first"
            self.refused("contrast", rows, rows, positives, *share, 0.5, match=name)
            self.refused("contrast_backward", loss, rows, rows, positives, positives, *share, 0.5, match=name)

    def test_cgc(self):
        x, crops = torch.rand(2, 3, 4, 5), self.crops()
        rest = (8, 8, 0.5, True, 0, 0.0, 1e-8)
        self.refused("cgc", x, x, x[:1], x[:1], crops, *rest, match="aug_features")
        self.refused("cgc", x, x, x[:, :, :3], x[:, :, :3], crops, *rest, match="aug_features")
        lower = x[:, :, :3].contiguous()
        self.refused("cgc", x, x, lower, lower, crops, *rest, match="aug_features")
        self.refused("cgc", x, x, x, lower, crops, *rest, match="aug_gradients")
        self.refused("cgc", x, x, x.double(), x.double(), crops, *rest, match="aug_features")
        self.refused("cgc", x, x, x, x, [c[:1] for c in crops], *rest, match="transform")

    def test_cgc_backward(self):
        x, crops = torch.rand(2, 3, 4, 5), self.crops()
        rest = (8, 8, 0.5, True, 0, 0.0, 1e-8)
        loss, saved = op("cgc")(x, x, x, x, crops, *rest)
        for wrong in (saved[:-1], saved[::2], saved.float(), saved.view(-1, 2)):
            self.refused("cgc_backward", loss, x, x, x, x, crops, wrong, *rest, 15, match="saved")
        self.refused("cgc_backward", loss.half(), x, x, x, x, crops, saved, *rest, 15, match="grad_loss")

    def test_what_was_got_is_told(self):
        x = torch.rand(2, 3, 4, 5)
        told = r"got float64 \[2, 3, 4, 5\] with strides \[60, 20, 5, 1\] on the CPU"
        with pytest.raises(RuntimeError, match=told):
            op("cam")(x, x.double(), True)

    def crops(self):
        return [torch.tensor([value, value]) for value in (0, 0, 8, 8)] + [torch.tensor([False, True])]
