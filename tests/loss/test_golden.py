"""The authors' released code, by its own outputs (float64, weighting "elementwise"): tests/loss/golden/*.npz."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cgc_kernels import CropFlip, backends, gradcam, info
from tests.support import ROOT
from tests.support.cases import CPP, EVERY_BACKEND, VIEWS, Case, evaluate, golden_cases, lay_out
from tests.support.compare import assert_close

DATA = golden_cases(Path(__file__).parent / "golden")
FORMATS = ("contiguous", "channels_last")
ROOM = Path(__file__).parent
ISAS = ("baseline", "avx2", "avx512")


def tensor(name, key):
    return torch.from_numpy(DATA[name][key])


def crop(name):
    top, left, height, width, flip = tensor(name, "crop").unbind(1)
    return CropFlip(top, left, height, width, flip.bool())


def call(name, objective, layout="contiguous", dtype=torch.float64):
    settings = {
        "image_size": int(DATA[name]["image_size"]),
        "temperature": float(DATA[name]["temperature"]),
        "weighting": "elementwise",
        "objective": objective,
    }
    return Case(tuple(lay_out(tensor(name, key), layout) for key in VIEWS), crop(name), settings).to(dtype)


def expected(name, objective):
    loss, prefix = ("loss", "grad_") if objective == "released" else ("loss_mse", "mse_grad_")
    return tensor(name, loss), {key: tensor(name, prefix + key) for key in VIEWS}


def mse_floor(objective):
    """Rounding of a mean square shows at the size of its terms, 1 / S^2."""
    return 1.0 if objective == "released" else 224.0**-2


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("objective", ["released", "mse"])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_float64(backend, name, objective, layout):
    loss, grads = evaluate(call(name, objective, layout), backend)
    expected_loss, expected_grads = expected(name, objective)
    assert_close(loss, expected_loss, 1e-10, floor=mse_floor(objective), what="loss")
    for key in VIEWS:
        assert_close(grads[key], expected_grads[key], 1e-10, what=key)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("objective", ["released", "mse"])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_float32(backend, name, objective, layout):
    loss, grads = evaluate(call(name, objective, layout, torch.float32), backend)
    expected_loss, expected_grads = expected(name, objective)
    assert loss.dtype == torch.float32
    assert_close(loss, expected_loss, 1e-5, floor=mse_floor(objective), what="loss", oracle=True)
    for key in VIEWS:
        assert_close(grads[key], expected_grads[key], 1e-4, what=key, oracle=True)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_stages(backend, name):
    stages = backends.choose(backend, torch.device("cpu"))
    case = call(name, "released")
    heatmaps, aug_heatmaps = (gradcam(*case.views[i : i + 2], weighting="elementwise", backend=backend) for i in (0, 2))
    assert_close(heatmaps, tensor(name, "heatmap_coarse"), 1e-10, what="heatmaps")
    rows, keys, positives = stages.resample(heatmaps, aug_heatmaps, case.transform, (224, 224), 1e-8, "released")
    batch = len(rows)
    negatives = (rows @ keys.T)[~torch.eye(batch, dtype=torch.bool)].view(batch, batch - 1)
    logits = torch.cat([positives[:, None], negatives], dim=1)  # the data's are not yet divided by the temperature
    assert_close(logits, tensor(name, "logits"), 1e-10, what="logits")
    loss = stages.contrast(rows, keys, positives, case.settings["temperature"])
    assert_close(loss, tensor(name, "loss"), 1e-10, what="loss")


def test_data_is_complete():
    assert set(DATA) == {"identity_crop", "more_channels", "square_14x14", "square_7x7", "thin_crop", "zero_heatmaps"}
    assert (DATA["zero_heatmaps"]["heatmap_coarse"] == 0).all(axis=(1, 2)).any()
    assert DATA["thin_crop"]["crop"][:, 2:4].min() == 1


# What no instruction set changes.
OTHERS = "every_instruction_set or slow or square_of_the_batch or specialise"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("backend", [CPP])
def test_every_instruction_set(backend, isa):
    """Golden cases, all conversions and both memory formats of the cam stage in each compiled path but this process's.

    That one is what the same tests run on here.
    """
    if isa == info()["cpp"]["instruction_set"]:
        return
    env = {**os.environ, "CGC_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    code = "import cgc_kernels; print(cgc_kernels.info()['cpp']['instruction_set'])"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    if run.stdout.strip() != isa:
        pytest.skip(f"this processor or this build has no {isa} path")
    stages = (file.name for stage in ("cam", "resample", "contrast") for file in ROOM.glob(f"test_{stage}*.py"))
    tests = ["test_golden.py", *stages]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
    command += [f"cpp and not ({OTHERS})", *(str(ROOM / test) for test in tests)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_info_names_the_instruction_set():
    assert info()["cpp"].get("instruction_set", "baseline") in ISAS
