"""Ctrl-C during a run: raised between two steps, never lost, at once when pressed again."""

import os
import signal
import threading

import pytest

from cpfast.train.progress import Interrupt, ProgressBar


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_waits_for_the_next_check():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.check()
        press()
        reached.append("after the key")
        interrupt.check()
        reached.append("after the check")
    assert reached == ["after the key"]


def test_pressed_again_it_is_raised_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupt():
        press()
        reached.append("once")
        press()
        reached.append("twice")
    assert reached == ["once"]


def test_it_is_not_lost_in_a_finaliser():
    class Finalised:
        def __del__(self):
            press()

    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        Finalised()
        interrupt.check()


def test_without_a_check_it_is_raised_at_the_end():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupt():
        press()
        reached.append("end")
    assert reached == ["end"]


def test_another_error_goes_first():
    with pytest.raises(ValueError, match="of the block"), Interrupt():
        press()
        raise ValueError("of the block")


def test_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_other_threads_leave_the_handler_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def run():
        with Interrupt() as interrupt:
            interrupt.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_bar_ends_between_two_steps():
    steps = []
    with pytest.raises(KeyboardInterrupt), ProgressBar(2) as bar:
        for step in range(4):
            bar.step(0.5)
            steps.append(step)
            if step == 1:
                press()
    assert steps == [0, 1]


def test_what_runs_in_the_background_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            press()
            interrupt.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_epoch_without_a_step_is_shown(monkeypatch):
    line = {"epoch": 1, "train_loss": None, "test_accuracy": None, "repeats": 1, "period_end": 1}
    with ProgressBar(2) as bar:
        shown = []
        monkeypatch.setattr(bar._bar, "set_postfix_str", shown.append)
        for censored in (False, True):
            bar.epoch({**line, "censored": censored})
    assert shown == ["k 1, period ended at 1", "k 1, period ended at 1 (censored)"]
