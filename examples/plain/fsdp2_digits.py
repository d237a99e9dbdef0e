"""A small network on scikit-learn's digits, its weights sharded over two processes by FSDP2."""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = 30


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    training = TensorDataset(images[:1437], digits[:1437])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sampler = DistributedSampler(training)
    loader = DataLoader(training, batch_size=32 // dist.get_world_size(), sampler=sampler)

    seen = torch.zeros((), dtype=torch.int64)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for inputs, target in loader:
            loss = nn.functional.cross_entropy(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(inputs)
        if (epoch + 1) % 10 == 0 and dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    dist.all_reduce(seen)
    with torch.no_grad():
        accuracy = (model(images[1437:]).argmax(1) == digits[1437:]).float().mean()
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.2%} after {seen.item()} samples")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
