"""A small network on scikit-learn's digits, with Lightning."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 30


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += len(batch[-1])
        inputs, target = batch
        return nn.functional.cross_entropy(self.net(inputs), target)

    def test_step(self, batch, batch_idx):
        inputs, target = batch
        self.log("accuracy", (self.net(inputs).argmax(1) == target).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


torch.manual_seed(0)
images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
training = TensorDataset(images[:1437], digits[:1437])
test = TensorDataset(images[1437:], digits[1437:])
loader = DataLoader(training, batch_size=32, shuffle=True)
trainer = pl.Trainer(
    max_epochs=EPOCHS,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
model = Classifier()
trainer.fit(model, loader)
for name, value in trainer.callback_metrics.items():
    print(f"{name} {value:.3f}")
(metrics,) = trainer.test(model, DataLoader(test, batch_size=360), verbose=False)
print(f"test accuracy {metrics['accuracy']:.2%} after {model.seen} samples")
