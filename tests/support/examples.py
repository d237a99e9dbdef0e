"""hypothesis; where it is not installed, the tests that draw examples are skipped."""

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:

    class _Anything:
        """Stands for every strategy."""

        def __call__(self, *_, **__):
            return self

        def __getattr__(self, name):
            return self

        def __or__(self, other):
            return self

    st = _Anything()

    def given(*_, **__):
        return pytest.mark.skip(reason="hypothesis is not installed")

    def settings(**_):
        return lambda test: test


__all__ = ["given", "settings", "st"]
