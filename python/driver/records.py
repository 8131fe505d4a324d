"""What a training leaves behind while it runs: checkpoints, metrics.csv, TensorBoard's file, and what it prints."""

import csv

from . import storage
from .settings import Settings
from .state import Run


def begin(trainer, progress) -> None:
    """Go on from the last checkpoint, or write one of the start, for the first epoch may fail; and print the notes."""
    run, state, ranks = trainer.run, trainer.state, trainer.ranks
    if ranks.share(run.last.exists()):
        state.load(run.last)
    else:
        trainer.save(run.best, run.last)
    if not ranks.rank:
        for note in (*trainer.data.notes, *state.notes):
            progress.write(note)


class Records:
    """Keeps the epochs that follow: checkpoints by all ranks together, the rest by the first. To be used in `with`."""

    def __init__(self, trainer, progress):
        self.trainer, self.progress = trainer, progress
        from torch.utils.tensorboard import SummaryWriter  # here: whoever asks for --help need not wait for it

        first_epoch = len(trainer.state.history) + 1
        self.board = None if trainer.ranks.rank else SummaryWriter(trainer.run.folder, purge_step=first_epoch)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception) -> None:
        if self.board:
            self.board.close()

    def keep(self, row: dict[str, float]) -> None:
        """An epoch. last.pt comes last: a run stopped before it repeats what it lacks and writes the rest again."""
        run, state = self.trainer.run, self.trainer.state
        better = state.end_epoch(row)
        if self.board:
            self._table()
            self._curves(row)
        self.trainer.save(*([run.best] if better else []), run.last)
        if self.board:
            self.progress.write(_line(row, run, self.trainer.settings))

    def skipped(self, names: list[str]) -> None:
        """Name each unreadable image once, and keep count."""
        known = self.trainer.state.skipped
        for name in names:
            if name not in known:
                known.append(name)
                self.progress.write(f"skipped: {name}")

    def _table(self) -> None:
        history = self.trainer.state.history
        with storage.replacing(self.trainer.run.folder / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, history[-1].keys())
            writer.writeheader()
            writer.writerows(history)

    def _curves(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self.board.add_scalar(name, value, row["epoch"])
        self.board.flush()


def _line(row: dict[str, float], run: Run, settings: Settings) -> str:
    heatmaps = f"CH {row['val_content_heatmap']:.1f} %, " if "val_content_heatmap" in row else ""
    return (
        f"{run.method} seed {run.seed} epoch {row['epoch']:2d}/{settings.epochs}: "
        f"cross-entropy {row['train_ce']:.2f}, validation accuracy {row['val_accuracy']:.1f} %, "
        f"{heatmaps}{row['seconds']:.1f} s"
    )
