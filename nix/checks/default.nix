# `nix flake check`.
{
  lib,
  nixpkgs,
  pkgs,
}:
let
  python = import ./python.nix { inherit pkgs; };

  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../bundle
      ../../examples
      ../../flake.lock
      ../../flake.nix
      ../../images
      ../../nix
      ../../python
      ../../templates
      ../../tests
    ];
  };

  # Runs a script in a writable copy of the project.
  check =
    name: tools: script:
    pkgs.runCommand "aistack-check-${name}" { nativeBuildInputs = tools; } ''
      cp -r ${src} source
      chmod -R u+w source
      cd source
      export HOME=$TMPDIR
      ${script}
      touch $out
    '';

  # Reported while evaluating: a failed case never gets as far as a build.
  evaluation =
    let
      inherit (import ../../tests/eval { inherit nixpkgs; }) results;
      failed = lib.filterAttrs (_: result: !result.ok) results;
      say = name: result: ''

        ${name}
          expected: ${builtins.toJSON result.expected}
          actual:   ${builtins.toJSON result.actual}
      '';
    in
    lib.throwIf (failed != { })
      "evaluation tests failed:${lib.concatStrings (lib.mapAttrsToList say failed)}"
      (
        pkgs.runCommand "aistack-check-evaluation" { } ''
          echo ${toString (lib.length (lib.attrNames results))} evaluation tests passed > $out
        ''
      );
in
{
  package = pkgs.aistack;

  format = check "format" [ pkgs.nixfmt pkgs.ruff ] ''
    find . -name '*.nix' -exec nixfmt --check {} +
    ruff format --check --config python/pyproject.toml python nix tests images
  '';

  lint = check "lint" [ pkgs.deadnix pkgs.ruff pkgs.shellcheck pkgs.statix ] ''
    deadnix --fail --no-lambda-pattern-names .
    statix check .
    shellcheck bundle/install bundle/uninstall nix/portable/render
    ruff check --config python/pyproject.toml python nix/portable
  '';

  types = check "types" [ python ] ''
    cd python
    mypy
    mypy --strict ../nix/portable/render.py
  '';

  # Tests that need root, podman or Nix itself say so and are skipped inside a build.
  python = check "python" [ python pkgs.bash ] ''
    cd python
    python3 -m pytest -p no:cacheprovider
  '';

  inherit evaluation;

  # What does not depend on the version of Nixpkgs is, byte for byte, what is checked in.
  bundle = check "bundle" [ ] ''
    diff -r ${pkgs.aistack-bundle}/reference/etc/aistack bundle/reference/etc/aistack
    diff <(cd ${pkgs.aistack-bundle}/reference && find etc usr -type f | sort) \
      <(cd bundle/reference && find etc usr -type f | sort)
  '';
}
// lib.mapAttrs' (name: lib.nameValuePair "vm-${name}") (
  import ../../tests/nixos { inherit lib pkgs; }
)
