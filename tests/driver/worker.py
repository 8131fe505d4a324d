"""`python driver_worker.py FILE FLAG...`: the gradients of a first step, by one process or, under torchrun, several."""

import sys
from pathlib import Path

import torch
from driver import ranks

from tests.driver.cases import first_gradients

if __name__ == "__main__":
    torch.set_num_threads(1)
    here = ranks.join()
    gradients = first_gradients(*sys.argv[2:], ranks=here)
    if not here.rank:
        torch.save(gradients, Path(sys.argv[1]))
    ranks.leave()
