"""Insertion and deletion on cases whose curves are known by hand."""

import pytest
import torch
from driver import faithfulness
from torch import nn

SIDE = 16  # two steps of 8 rows
TOP = torch.arange(SIDE * SIDE, 0, -1).reshape(1, SIDE, SIDE).float()  # hottest first in reading order


class MeanAbove(nn.Module):
    """Logits (k * share of pixels above 0.5, 0): the first class is predicted on a bright image."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.seen: list[torch.Tensor] = []

    def forward(self, images):
        self.seen.append(images)
        share = (images > 0.5).float().mean((1, 2, 3))
        return torch.stack([self.scale * share, torch.zeros_like(share)], 1)


@pytest.fixture
def bright():
    return torch.ones(1, 3, SIDE, SIDE)


def test_deletion_takes_the_hottest_pixels_first(bright):
    model = MeanAbove(4.0).eval()
    _, deletion = faithfulness.insertion_deletion(model, bright, TOP)
    assert deletion[0].tolist() == pytest.approx(torch.sigmoid(torch.tensor([4.0, 2.0, 0.0])).tolist())
    halfway = model.seen[-1][1]
    assert (halfway[:, :8] == 0).all()
    assert (halfway[:, 8:] == 1).all()


def test_insertion_starts_blurred_and_ends_whole(bright):
    model = MeanAbove(4.0).eval()
    insertion, _ = faithfulness.insertion_deletion(model, bright, TOP)
    steps = model.seen[1]
    assert torch.equal(steps[0], faithfulness.blur(bright)[0])
    assert torch.equal(steps[1][:, :8], bright[0, :, :8])
    assert torch.equal(steps[1][:, 8:], faithfulness.blur(bright)[0, :, 8:])
    assert torch.equal(steps[2], bright[0])
    assert insertion[0, -1].item() == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())


def test_steps_are_28_at_224_and_cover_every_pixel():
    image, heat = torch.ones(1, 3, 224, 224), torch.rand(1, 224, 224)
    insertion, deletion = faithfulness.insertion_deletion(MeanAbove(1.0).eval(), image, heat)
    assert insertion.shape == deletion.shape == (1, 29)
    assert deletion[0, -1].item() == 0.5
    assert faithfulness.ROWS_A_STEP * 224 == 1792


def test_last_step_of_another_size_is_the_remainder():
    image, heat = torch.ones(1, 3, 20, 20), torch.rand(1, 20, 20)
    model = MeanAbove(1.0).eval()
    _, deletion = faithfulness.insertion_deletion(model, image, heat)
    assert deletion.shape == (1, 4)
    assert [int((step == 0).all(0).sum()) for step in model.seen[-1]] == [0, 160, 320, 400]


def test_ties_go_in_reading_order(bright):
    model = MeanAbove(1.0).eval()
    faithfulness.insertion_deletion(model, bright, torch.ones(1, SIDE, SIDE))
    assert (model.seen[-1][1][:, :8] == 0).all()


def test_the_class_is_the_one_predicted_on_the_full_image():
    """On a dark image the second class is predicted, and stays the one that is scored."""
    model = MeanAbove(-4.0).eval()
    insertion, deletion = faithfulness.insertion_deletion(model, torch.ones(1, 3, SIDE, SIDE), TOP)
    assert deletion[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())
    assert insertion[0, -1].item() == deletion[0, 0].item()


def test_area_by_trapezoids():
    scores = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert faithfulness.area_under(scores).tolist() == pytest.approx([0.5, 1, 0.25])


def test_blur_is_rises():
    """Sigma 5 folded into an 11 x 11 kernel by reflection: it sums to 1, and the corner of a flat image darkens."""
    flat = faithfulness.blur(torch.ones(1, 3, 32, 32, dtype=torch.float64))
    assert flat[0, 0, 16, 16].item() == pytest.approx(1)
    assert flat[0, 0, 0, 0].item() < 0.4
    impulse = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    impulse[..., 16, 16] = 1
    kernel = faithfulness.blur(impulse)[0, 0, 11:22, 11:22]
    assert kernel.sum().item() == pytest.approx(1)
    assert (kernel > 0).all()
    torch.testing.assert_close(kernel, kernel.T)


def test_train_mode_is_refused(bright):
    with pytest.raises(RuntimeError, match="eval mode"):
        faithfulness.insertion_deletion(MeanAbove(1.0).train(), bright, TOP)
