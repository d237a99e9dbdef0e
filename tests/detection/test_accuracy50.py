import numpy as np
import pytest
import torch
from support.detection import CLASSES, Regression, replay

import cpfast


@pytest.mark.not_emulated("no kernel runs")
@pytest.mark.parametrize("shape", [(6,), (2, 3)])  # of images, of text
def test_it_counts_what_the_epochs_steps_predicted(device, shape):
    regression = Regression(device=device)
    probe = regression.probe(needs=("accuracy",))
    rule = cpfast.CriticalPeriodDetector("accuracy50").rule
    for steps in (3, 2):  # the second epoch begins anew
        probe.begin(steps)
        hits = 0
        for step in range(steps):
            logits, target = regression.batch(step)
            _, p, y = regression.numbers(np.arange(6) + 6 * step)
            hits += np.count_nonzero(p.argmax(1) == y)
            probe.after_forward(logits.view(*shape, CLASSES), target.view(shape))
        assert 0 < hits < 6 * steps
        assert rule.measure(probe).tolist() == [hits / (6 * steps)]
    probe.begin(0)
    assert rule.measure(probe).isnan().all()


def test_it_is_half_of_all_or_half_way_from_chance():
    rows = [0.1, 0.49, 0.5, 0.54, 0.55, 0.9]
    assert replay("accuracy50", rows).end_epoch == 3
    assert replay("accuracy50", rows, chance=0.1).end_epoch == 5
    assert replay("accuracy50", rows, chance=0.5).end_epoch == 6  # two classes: .75
    assert replay("accuracy50", [0.5]).censored
    for chance in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"chance: .* got {chance}"):
            cpfast.CriticalPeriodDetector("accuracy50", chance=chance)


def test_what_was_not_asked_for_is_not_measured():
    probe = Regression().probe()
    probe.begin(1)
    probe.after_forward(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"give it needs=\('accuracy',\)"):
        probe.accuracy()
