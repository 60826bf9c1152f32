# Python with all that the package and its tests import.
{ pkgs }:
pkgs.python3.withPackages (packages: [
  packages.click
  packages.fastapi
  packages.httpx
  packages.hypothesis
  packages.jsonschema
  packages.mypy
  packages.opentelemetry-exporter-otlp-proto-http
  packages.opentelemetry-sdk
  packages.prometheus-client
  packages.pydantic
  packages.pydantic-settings
  packages.pytest
  packages.python-dotenv
  packages.requests
  packages.rich
  packages.types-jsonschema
  packages.types-requests
  packages.uvicorn
])
