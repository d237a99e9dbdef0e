"""Registries: what registers, what is refused, and what a failed import leaves."""

import functools
import importlib
import sys

import pytest

from cpfast.registry import Registry, UnknownName

REGISTRY = """
from cpfast.registry import Registry

things = Registry("thing", __name__, "none")
"""
MODULE = '''
from {package} import things

@things.register("{name}", source="a paper")
def {name}(size: int = 1):
    """One line."""
    return "{name}", size
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a registry and two modules; its folder."""
    folder = tmp_path / "things_of_a_test"
    folder.mkdir()
    registry = (
        'from cpfast.registry import Registry\nthings = Registry("thing", __name__, "none")\n'
    )
    (folder / "__init__.py").write_text(registry)
    for name in ("first", "second"):
        (folder / f"{name}.py").write_text(MODULE.format(package=folder.name, name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def things_of(package) -> Registry:
    return importlib.import_module(package.name).things


def test_a_file_is_all_that_a_name_takes(package):
    (package / "third.py").write_text(MODULE.format(package=package.name, name="third"))
    things = things_of(package)
    assert list(things) == ["first", "second", "third"] and len(things) == 3
    assert things.make("third", size=2) == ("third", 2)
    assert (things["third"].line, things["third"].source) == ("One line.", "a paper")


def test_unknown_names_and_options_are_named(package):
    things = things_of(package)
    with pytest.raises(
        UnknownName, match=r"^thing: expected one of .*, got 'frist'; did you mean first\?$"
    ):
        things["frist"]
    with pytest.raises(ValueError, match="^length: expected size, got 3 for 'first'$"):
        things.make("first", length=3)


def test_a_failed_import_fails_again_until_it_is_mended(package):
    broken = package / "broken.py"
    broken.write_text("raise RuntimeError('not yet')")
    things = things_of(package)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not yet"):
            list(things)
    with pytest.raises(RuntimeError, match="not yet"):
        things["third"]
    broken.unlink()
    importlib.invalidate_caches()
    assert list(things) == ["first", "second"]


def test_a_module_that_is_reloaded_registers_again(package):
    things = things_of(package)
    before = things["first"].factory
    importlib.reload(sys.modules[f"{package.name}.first"])
    assert things["first"].factory is not before
    assert list(things) == ["first", "second"]


def test_another_one_under_a_name_is_refused(package):
    things = things_of(package)

    def closure(value):
        def factory():
            return value

        return factory

    for first, second in (
        (closure(1), closure(2)),
        (lambda: 1, lambda: 2),
        (functools.partial(int, 1), functools.partial(int, 2)),
    ):
        name = f"name {id(first)}"
        things.register(name, source="a test", line="A line.")(first)
        things.register(name, source="a test", line="A line.")(first)
        with pytest.raises(ValueError, match=f"^thing '{name}': registered already, by "):
            things.register(name, source="a test", line="A line.")(second)


def test_what_has_no_line_is_refused(package):
    with pytest.raises(ValueError, match="^thing 'bare': no docstring, and no line$"):
        things_of(package).register("bare", source="a test")(lambda: 1)
