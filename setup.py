"""The packages of the distribution; everything else is in pyproject.toml.

The files of ds_configs/ and recipes/tasks/ go along as parts of cmbert, so that an installed copy finds them by name.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cmbert*", "data_tools*"]), "cmbert.ds_configs", "cmbert.recipes.tasks"],
    package_dir={"cmbert.ds_configs": "ds_configs", "cmbert.recipes.tasks": "recipes/tasks"},
)
