"""Classifies scikit-learn's digits, images of 8x8 pixels, with Lightning."""

import time

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

T = 30  # epochs


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.trained = 0

    def training_step(self, batch, batch_idx):
        self.trained += len(batch[-1])
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


pl.seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
train, test = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
loader = DataLoader(train, 64, shuffle=True)
trainer = pl.Trainer(
    max_epochs=T,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
model, began = Classifier(), time.perf_counter()
trainer.fit(model, loader, DataLoader(test, 360))
for name, value in trainer.callback_metrics.items():
    print(f"{name}: {value:.4f}")
seconds = time.perf_counter() - began
print(f"trained on {model.trained} of {T * len(train)} samples, in {seconds:.1f} s")
