"""A fault at every file-system call of a run: resumed, it ends as if there had been none."""

import errno
import os
import tempfile

import pytest
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data, without_times

from cpfast.train import files, run, runfolder
from cpfast.train.errors import UserError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
CALLS = ("open", "fsync", "replace", "chmod", "mkstemp", "fdopen", "write")


class Faulty:
    """Of a module, the calls of the file system, of which one fails."""

    def __init__(self, module, called):
        self._module, self._called = module, called

    def __getattr__(self, name):
        real = getattr(self._module, name)
        return self._called(name, real) if name in CALLS else real


class FaultyFile:
    """Writes half of what it is to write, where it fails."""

    def __init__(self, file, called):
        self._file, self._called = file, called

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        def half(data):
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._called("write", self._file.write, before_fault=half)(data)


class Disk:
    """Fails at the call of a number, from 0; None: never."""

    def __init__(self, monkeypatch, fault):
        self.fault, self.calls = fault, []
        for module in (runfolder, files):
            monkeypatch.setattr(module, "os", Faulty(os, self.called))
        monkeypatch.setattr(files, "tempfile", Faulty(tempfile, self.called))
        monkeypatch.setattr(runfolder, "open", self.called("open", open), raising=False)

    def called(self, name, real, before_fault=None):
        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) - 1 == self.fault:
                if before_fault is not None:
                    before_fault(*arguments)
                raise OSError(errno.EIO, "Input/output error")
            made = real(*arguments, **options)
            return FaultyFile(made, self.called) if name in ("open", "fdopen") else made

        return call


def test_a_fault_at_any_call_loses_nothing(tmp_path, monkeypatch):
    config, data = make_config(epochs=2, at=1, method="detector+prune"), toy_data()
    whole = start(tmp_path / "whole", config)
    disk = Disk(monkeypatch, None)
    run.train(config, data, whole)
    monkeypatch.undo()
    count = len(disk.calls)
    assert count > 30 and set(disk.calls) == set(CALLS)
    for fault in range(count):
        folder = start(tmp_path / str(fault), config)
        with monkeypatch.context() as patch:
            disk = Disk(patch, fault)
            with pytest.raises((OSError, UserError)):
                run.train(config, data, folder)
            assert len(disk.calls) > fault
        run.train(config, data, folder)
        assert_same_checkpoint(whole, folder)
        assert without_times(whole.metrics()) == without_times(folder.metrics())
        assert folder.energy()["seconds"] > 0
        assert not list(folder.path.glob(f"*{files.TEMPORARY}"))
