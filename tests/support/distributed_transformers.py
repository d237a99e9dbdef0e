"""A training of transformers' Trainer in one of several processes; writes what it came to."""

import json
import os
import pathlib
import sys

import torch
import toy_transformers as toys
from transformers import TrainerCallback

from cpfast.integrations.transformers import INDEX, PrunedTrainer

folder = pathlib.Path(sys.argv[1])
torch.set_num_threads(1)


class Seen(PrunedTrainer):
    """Notes which samples each update had."""

    def compute_loss(self, model, inputs, **kwargs):
        self.seen[-1].append(inputs[INDEX].tolist())
        return super().compute_loss(model, inputs, **kwargs)

    loss_is_scaled_for_ga = True


class Epochs(TrainerCallback):
    def on_epoch_begin(self, *args, **kwargs):
        trainer.seen.append([])


def run(checkpoint=None):
    global trainer
    watch = toys.callback(81, repeats=1)  # ranks that score a sample twice give its mean
    trainer = Seen(
        toys.gpt2(),
        toys.arguments(
            folder / "out",
            ddp_backend="gloo",
            save_strategy="steps",
            save_steps=8,
            per_device_train_batch_size=16 // int(os.environ["WORLD_SIZE"]),
        ),
        train_dataset=toys.texts(81),
        callbacks=[watch, Epochs()],
    )
    trainer.seen = []
    trainer.train(resume_from_checkpoint=checkpoint)
    course = watch.course
    return {
        "seen": trainer.seen,
        "steps": trainer.state.global_step,
        "scores": course.pruner.scores.tolist(),
        "samples": course.pruner.samples_seen,
        "rotation": course.rotation.compute(),
        "weights": [float(p.double().sum()) for p in trainer.model.parameters()],
        "logs": [log for log in trainer.state.log_history if "cpfast/rotation" in log],
    }


whole = run()
# in the middle of the second epoch
resumed = run(str(folder / "out" / "checkpoint-8"))
rank = trainer.args.process_index
(folder / f"rank{rank}.json").write_text(json.dumps({"whole": whole, "resumed": resumed}))
torch.distributed.barrier()
os._exit(0)  # see distributed_epochs.py
