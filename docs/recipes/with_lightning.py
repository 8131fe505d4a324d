"""A LightningModule; lines that end in `# +` are added or changed, those in `# pictures` are for TensorBoard."""

import tempfile

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from cgc_kernels import GradCAM, RandomCropFlip, cgc_loss, log_heatmaps  # +


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = GradCAM(resnet18(num_classes=10), "layer4")  # +

    def training_step(self, batch, batch_idx):
        x, y = batch
        x_aug, transform = RandomCropFlip(64)(x)  # +
        out, out_aug = self.model(x, x_aug)  # +
        loss = F.cross_entropy(out.logits, y) + 0.5 * cgc_loss(out.cam, out_aug.cam, transform)  # +
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.model.model(x), y))  # +
        if batch_idx == 0:  # pictures
            log_heatmaps(self.logger.experiment, self.model, x[:8], self.global_step)  # pictures

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main():
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 64, 64), torch.arange(4)), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator="auto", logger=TensorBoardLogger(folder), enable_checkpointing=False
        )
        trainer.fit(Classifier(), loader, loader)


if __name__ == "__main__":
    main()
