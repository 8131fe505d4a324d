"""What else could be asked of heatmaps: many terms beside the cross-entropy, on photographs, by the same measures.

    python python/search.py --data-root OBJECTS --photographs PHOTOGRAPHS --arms all --seeds 10 --steps 60
    python python/search.py --data-root OBJECTS --photographs PHOTOGRAPHS --arms ce cgc-c10 attention --test
    python python/search.py --table                    the tables of what is finished, nothing is trained

The folders are those of --data cutouts; docs/search.md says what came of it. The last stage and the head of
EfficientNet-Lite0 are trained on what its frozen stages make of the views, which is made once and kept in --output. All
arms see the same views in the same order, and start from the same weights. A run is a line of runs.jsonl there; what is
finished is not trained again. Settings are chosen on validation images: --test looks at the test images as well.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from driver.metrics import label_ranks
from searching.measures import look, measured, two_objects
from searching.networks import Head, network
from searching.tables import tables
from searching.terms import ARMS
from searching.training import train
from searching.views import of_few_objects, views


def run(wanted: SimpleNamespace, arm: str, seed: int, split: str) -> dict:
    """Train an arm unless its weights are there, look at a split, and measure; the baseline must have been run."""
    few = f"-{wanted.train_objects}" if wanted.train_objects else ""
    data = seed if wanted.data_seed is None else wanted.data_seed
    name, began = f"{seed}-{data}-{wanted.steps}{few}", time.process_time()
    weights = wanted.output / f"{arm}-{name}.weights.pt"
    if weights.exists():
        _, net = network(seed)
        net.load_state_dict(torch.load(weights))
    else:
        images = of_few_objects(views(wanted, data, "train"), wanted.train_objects, data)
        net = train(ARMS[arm](), images, seed, wanted.steps)
        torch.save(net.state_dict(), weights)
    seconds, images = time.process_time() - began, views(wanted, data, split)
    seen = look(net, images)
    baseline = seen if arm == "ce" else look(_load_baseline(wanted, name, seed), images)
    row = measured(seen, images, baseline)
    two = views(wanted, data, split, distractors=1)
    row |= two_objects(look(net, two), two)
    right = (label_ranks(seen.logits, images.labels) == 0).int().tolist()
    return {"seconds": seconds, **row, "right": right, "objects": images.objects}


def _load_baseline(wanted: SimpleNamespace, name: str, seed: int) -> Head:
    _, net = network(seed)
    net.load_state_dict(torch.load(wanted.output / f"ce-{name}.weights.pt"))
    return net


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is missing, then print the tables."""
    wanted = _parser().parse_args(arguments)
    wanted.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(wanted.threads)
    rows = _finished(wanted.output)
    arms = list(ARMS) if wanted.arms == ["all"] else wanted.arms
    for seed, arm, split in product(wanted.seeds, dict.fromkeys(["ce", *arms]), ["val", "test"][: 1 + wanted.test]):
        settings = {
            "arm": arm,
            "seed": seed,
            "data_seed": seed if wanted.data_seed is None else wanted.data_seed,
            "steps": wanted.steps,
            "train_objects": wanted.train_objects,
            "split": split,
        }
        if wanted.table or any(settings.items() <= row.items() for row in rows):
            continue
        rows.append({**settings, **run(wanted, arm, seed, split)})
        with open(wanted.output / "runs.jsonl", "a") as file:
            print(json.dumps(rows[-1]), file=file)
        print(f"{arm}, seed {seed}, {split}: {rows[-1]['seconds']:.0f} s", flush=True)
    print(tables(rows))


def _finished(output: Path) -> list[dict]:
    path = output / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", default="build/photographs/objects", metavar="DIR", help="class folders of cut-outs"
    )
    parser.add_argument(
        "--photographs", default="build/photographs/backgrounds", metavar="DIR", help="pictures behind them"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/search"), metavar="DIR", help="features, weights, runs"
    )
    parser.add_argument("--arms", nargs="+", default=["all"], choices=["all", *ARMS], metavar="ARM", help="all or some")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of data and training")
    parser.add_argument(
        "--data-seed", type=int, metavar="SEED", help="the same data for all seeds; otherwise each its own"
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of each training")
    parser.add_argument("--train-objects", type=int, default=0, metavar="N", help="objects a class to train on; 0: all")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch")
    parser.add_argument("--test", action="store_true", help="look at the test images as well")
    parser.add_argument("--table", action="store_true", help="print what is finished, train nothing")
    return parser


if __name__ == "__main__":
    main()
