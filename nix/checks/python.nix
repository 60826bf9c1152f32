# Python with all that the package and its tests import.
{ pkgs }:
pkgs.python3.withPackages (packages: [
  packages.click
  packages.hypothesis
  packages.jsonschema
  packages.mypy
  packages.pydantic
  packages.pytest
  packages.python-dotenv
  packages.requests
  packages.rich
  packages.types-jsonschema
  packages.types-requests
])
