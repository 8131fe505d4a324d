"""What goes through collates, device moves and other walks over trees of tensors comes out of its own type."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from cgc_kernels import CAM, CropFlip, GradCAM, GradCAMOutput, RandomCropFlip, cgc_loss, heatmap_loss
from tests.support.cases import simple_case
from tests.support.models import TinyNet

CROP = CropFlip.from_torchvision([(0, 1, 6, 7), (2, 0, 7, 8)], flip=[True, False])
CAM_OF_ONE = CAM(torch.rand(2, 4, 3, 3), torch.rand(2, 4), (9, 11))
TREES = {"crop": CROP, "cam": CAM_OF_ONE, "output": GradCAMOutput(torch.rand(2, 5), CAM_OF_ONE)}


def rebuilt(data):
    """As Hugging Face's Trainer moves a batch: it knows no named tuples."""
    if isinstance(data, tuple | list):
        return type(data)(rebuilt(value) for value in data)
    return data.clone() if isinstance(data, torch.Tensor) else data


def detached(leaf):
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


WALKS = {
    "type(data)(generator)": rebuilt,
    "type(data)(list)": lambda data: type(data)(list(data)),
    "type(data)(*fields)": lambda data: type(data)(*data),
    "pytree": lambda data: pytree.tree_map(lambda leaf: leaf, data),
    "copy": copy.deepcopy,
    "pickle": lambda data: pickle.loads(pickle.dumps(data)),
    "_make": lambda data: type(data)._make(data),
    "_replace": lambda data: data._replace(),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("walk", WALKS)
def test_type_and_values_are_kept(tree, walk):
    before = TREES[tree]
    after = WALKS[walk](before)
    assert type(after) is type(before)
    leaves = pytree.tree_leaves(after), pytree.tree_leaves(before)
    for one, other in zip(*leaves, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_files_name_them_by_their_package(tmp_path):
    """So that a file outlives the module inside the package that defines them."""
    with torch.no_grad():
        outputs = GradCAM(TinyNet(), "body")(torch.rand(2, 3, 8, 8))
    torch.save(outputs, tmp_path / "outputs.pt")
    named = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "outputs.pt")
    assert sorted(named) == [f"cgc_kernels.grad_cam.{kind}" for kind in ("CAM", "GradCAMOutput", "GradCAMOutputs")]
    with torch.serialization.safe_globals([type(outputs), GradCAMOutput, CAM]):
        (loaded,) = torch.load(tmp_path / "outputs.pt")
    assert torch.equal(loaded.cam.features, outputs[0].cam.features)


def test_one_tensor_is_not_taken_for_five():
    """Rows [B, 5] would come apart along the batch."""
    with pytest.raises(TypeError, match="missing 4 required positional arguments"):
        CropFlip(torch.zeros(5, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="missing"):
        CropFlip(field for field in CROP[:4])


def test_compiled_code_makes_and_returns_them():
    def function(crop, features):
        moved = CropFlip(crop.top + 1, *crop[1:])
        return moved, CAM(features, features.mean((2, 3)), tuple(features.shape[2:]))

    crop, cam = torch.compile(function, fullgraph=True, backend="eager")(CROP, CAM_OF_ONE.features)
    assert (type(crop), type(cam)) == (CropFlip, CAM)
    assert torch.equal(crop.top, CROP.top + 1)
    assert cam.image_size == (3, 3)


@pytest.mark.parametrize("walk", ["type(data)(generator)", "type(data)(list)", "pytree", "copy", "pickle"])
def test_outputs_stay_one_tuple_with_all_tensors(walk):
    cam = GradCAM(TinyNet(), "body")
    views = torch.rand(2, 3, 3, 8, 8)
    for outputs in (cam(*views), cam(*views, extra=[views[0]], batched=True), cam(views[0])):
        walked = WALKS[walk](pytree.tree_map(detached, outputs))
        assert type(walked) is type(outputs)
        assert len(pytree.tree_leaves(walked)) == len(pytree.tree_leaves(outputs)) >= 5


def test_the_outputs_of_a_compiled_model():
    cam = GradCAM(TinyNet(), "body")
    views = torch.rand(2, 3, 3, 8, 8)
    outputs = torch.compile(cam, fullgraph=True, backend="eager")(*views)
    assert type(outputs) is type(cam(*views))
    assert [out.cam.image_size for out in outputs] == [(8, 8), (8, 8)]


def test_the_outputs_are_not_one_output():
    outputs = GradCAM(TinyNet(), "body")(torch.rand(3, 3, 8, 8))
    for name in ("logits", "cam"):
        with pytest.raises(AttributeError, match=r"must be unpacked, .*: \(out,\) = cam\(x\), then out\.logits"):
            getattr(outputs, name)
    assert not hasattr(outputs, "logits")


def collated_by_hugging_face(samples):
    """transformers.default_data_collator for values that are neither tensors nor arrays."""
    return torch.tensor(samples)


@pytest.mark.parametrize("collate", [default_collate, collated_by_hugging_face, np.asarray])
def test_samples_become_a_batch_that_the_loss_takes(collate):
    case = simple_case()
    torch.manual_seed(0)
    samples = [RandomCropFlip((9, 11))(torch.rand(3, 9, 11))[1] for _ in range(3)]
    expected = cgc_loss(case.views[:2], case.views[2:], default_collate(samples), **case.settings)
    batch = collate(samples)
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch)
    assert torch.equal(cgc_loss(case.views[:2], case.views[2:], batch, **case.settings), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_losses_take_rows(dtype):
    case = simple_case()
    maps = torch.rand(2, 3, 3, 4)
    rows = case.transform.rows().to(dtype)
    for backend in ("torch", "reference", "auto"):
        settings = {**case.settings, "backend": backend}
        losses = [cgc_loss(case.views[:2], case.views[2:], t, **settings) for t in (rows, case.transform)]
        losses += [heatmap_loss(*maps, t, image_size=(9, 11), backend=backend) for t in (rows, case.transform)]
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[2], losses[3])


def test_lightning_and_accelerate_move_it():
    accelerate = pytest.importorskip("accelerate.utils")
    lightning = pytest.importorskip("lightning.fabric.utilities.apply_func")
    batch = [torch.rand(2, 3), CROP, {"cam": CAM_OF_ONE}]
    for move in (accelerate.send_to_device, lightning.move_data_to_device):
        moved = move(batch, torch.device("cpu"))
        assert type(moved[1]) is CropFlip
        assert type(moved[2]["cam"]) is CAM
        assert moved[2]["cam"].image_size == (9, 11)
        assert torch.equal(moved[1].rows(), CROP.rows())
