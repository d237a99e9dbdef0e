"""One version, in cpfast/__init__.py; all else follows from it, or is compared with it here."""

import pathlib
import re
from importlib import metadata

import pytest

import cpfast
from cpfast import cli

ROOT = pathlib.Path(__file__).parents[1]
HEADINGS = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
RELEASES = [heading.split()[0] for heading in HEADINGS if heading != "Unreleased"]


def numbers(version):
    return tuple(int(part) for part in version.removesuffix(".dev0").split("."))


def test_it_is_that_of_the_changelogs_first_section():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", cpfast.__version__)
    if HEADINGS[0] == "Unreleased":  # what it is on the way to
        assert cpfast.__version__.endswith(".dev0")
        assert numbers(cpfast.__version__) > numbers(RELEASES[0])
    else:
        assert cpfast.__version__ == RELEASES[0]
    assert sorted(RELEASES, key=numbers, reverse=True) == RELEASES


def test_the_release_to_cite_is_the_newest():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.M) == RELEASES[:1]


def test_what_is_installed_is_of_it():
    try:
        installed = metadata.version("cpfast")
    except metadata.PackageNotFoundError:
        pytest.skip("cpfast is not installed")
    assert installed == cpfast.__version__, "install it again"


def test_a_checkout_that_is_not_installed_says_it_too(monkeypatch, capsys):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"cpfast {cpfast.__version__}\n"
    assert cli.main(["env"]) == 0
    assert re.search(rf"^cpfast +{re.escape(cpfast.__version__)}$", capsys.readouterr().out, re.M)
