# `nix flake check`.
{
  lib,
  nixpkgs,
  pkgs,
}:
let
  python = import ./python.nix { inherit pkgs; };

  # All but what tools leave behind in a checkout.
  src = lib.cleanSourceWith {
    src = ../..;
    name = "aistack";
    filter =
      path: type:
      lib.cleanSourceFilter path type
      && !(lib.hasSuffix "_cache" (baseNameOf path) || baseNameOf path == "__pycache__");
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

  # Evaluated with the flake, reported as a check among the others: what fails is in its log.
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
    pkgs.runCommand "aistack-check-evaluation"
      {
        failures = lib.concatStrings (lib.mapAttrsToList say failed);
        passAsFile = [ "failures" ];
      }
      ''
        cat "$failuresPath"
        [ ! -s "$failuresPath" ]
        echo ${toString (lib.length (lib.attrNames results))} evaluation tests passed > $out
      '';
in
{
  package = pkgs.aistack;

  format = check "format" [ pkgs.nixfmt pkgs.ruff ] ''
    find . -name '*.nix' -exec nixfmt --check {} +
    ruff format --check .
  '';

  lint = check "lint" [ pkgs.deadnix pkgs.ruff pkgs.shellcheck pkgs.statix ] ''
    deadnix --fail .
    statix check .
    ruff check .
    grep -rlE --exclude-dir={reference,ralph} '^#!(/usr)?/bin/(env )?(ba)?sh' . \
      | xargs -d '\n' shellcheck --external-sources
  '';

  types = check "types" [ python ] ''
    (cd python && mypy)
    mypy --config-file=tests/guest/mypy.ini
    mypy --strict nix/portable/render.py
  '';

  # Tests that need root, podman or Nix itself say so and are skipped inside a build.
  python = check "python" [ pkgs.gitMinimal python ] ''
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
