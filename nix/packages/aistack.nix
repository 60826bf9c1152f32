# The Python package: the command `aistack`, and the hooks that the units run.
{
  lib,
  python3Packages,
  iproute2,
  iptables,
  nftables,
}:
let
  version = lib.head (
    builtins.match ''.*__version__ = "([^"]+)".*'' (lib.readFile ../../python/aistack/__init__.py)
  );
in
python3Packages.buildPythonApplication {
  pname = "aistack";
  inherit version;
  pyproject = true;

  src = import ./python-source.nix { inherit lib; };

  build-system = [ python3Packages.setuptools ];

  dependencies = [
    python3Packages.click
    python3Packages.pydantic
    python3Packages.requests
    python3Packages.rich
  ];

  # What aistack.services import; images of services have them, the command line has not.
  optional-dependencies.services = [
    python3Packages.fastapi
    python3Packages.httpx
    python3Packages.opentelemetry-exporter-otlp-proto-http
    python3Packages.opentelemetry-sdk
    python3Packages.prometheus-client
    python3Packages.pydantic-settings
    python3Packages.uvicorn
  ];

  # What a repair of the network asks and changes; the host's own come first.
  makeWrapperArgs = [
    "--suffix"
    "PATH"
    ":"
    (lib.makeBinPath [
      iproute2
      iptables
      nftables
    ])
  ];

  # The hook finds its package beside itself. It must not be wrapped: units run it as a Python file,
  # thousands of times a day, and without site-packages.
  postInstall = ''
    mkdir -p $out/lib/aistack
    mv $out/bin/aistack-hook $out/lib/aistack/aistack-hook
    ln -s $out/${python3Packages.python.sitePackages}/aistack $out/lib/aistack/aistack
    ln -s $out/lib/aistack/aistack-hook $out/bin/aistack-hook
  '';

  # The tests need the whole project; they are a check of the flake.
  pythonImportsCheck = [ "aistack.hooks.main" ];

  meta = {
    description = "Command line and unit hooks of a local AI stack of podman containers";
    license = lib.licenses.mit;
    mainProgram = "aistack";
    platforms = lib.platforms.linux;
  };
}
