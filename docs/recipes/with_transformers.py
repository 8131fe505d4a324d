"""Hugging Face's Trainer; lines that end in `# +` are added or changed."""

import tempfile

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from cgc_kernels import GradCAM, RandomCropFlip, cgc_loss  # +


class CGCTrainer(Trainer):  # +
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):  # +
        aug, transform = RandomCropFlip(64)(inputs["pixel_values"])  # +
        out, out_aug = model(inputs["pixel_values"], aug)  # +
        loss = F.cross_entropy(out.logits, inputs["labels"]) + 0.5 * cgc_loss(out.cam, out_aug.cam, transform)  # +
        return (loss, {"logits": out.logits}) if return_outputs else loss  # +


def main():
    data = [{"pixel_values": torch.rand(3, 64, 64), "labels": label} for label in range(4)]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
    model = ResNetForImageClassification(config)
    model = GradCAM(model, "resnet.encoder.stages.1")  # +
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=1,
            remove_unused_columns=False,
            label_names=["labels"],  # + which are those of the bare model otherwise
            report_to="none",
        )
        trainer = CGCTrainer(model, arguments, train_dataset=data, eval_dataset=data)  # +
        trainer.train()
        print(trainer.evaluate())


if __name__ == "__main__":
    main()
