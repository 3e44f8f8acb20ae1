"""The repository root is the package `reprise`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

PARTS = ["papers", "papers.*", "common", "common.*", "configs"]

setup(
    package_dir={"reprise": "."},
    packages=["reprise", *(f"reprise.{name}" for name in find_packages(include=PARTS))],
)
