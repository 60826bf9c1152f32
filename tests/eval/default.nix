# Evaluation tests. Every file in cases/ is a function of the harness to
#
#   { "a sentence that holds" = { expr = …; expected = …; }; }
#
# or, where what is refused matters, { refused = <messages>; says = [ "part of the one message" … ]; }.
#
#   nix-instantiate --eval --strict --json --read-write-mode tests/eval -A results
#
# gives { "<file>: <sentence>" = { ok; expected; actual; }; }. `errors` holds what Nix itself refuses, such as a value of
# the wrong type: each of them ends the evaluation, so each is an evaluation of its own, and its message is read from outside.
{
  nixpkgs ? <nixpkgs>,
}:
let
  lib = import (nixpkgs + "/lib");
  harness = import ./harness.nix { inherit nixpkgs lib; };

  files = lib.filterAttrs (name: _: lib.hasSuffix ".nix" name) (builtins.readDir ./cases);
  cases = lib.concatMapAttrs (
    file: _:
    lib.mapAttrs' (sentence: lib.nameValuePair "${lib.removeSuffix ".nix" file}: ${sentence}") (
      import (./cases + "/${file}") harness
    )
  ) files;

  errors = import ./errors.nix harness;

  judge =
    case:
    if case ? refused then
      {
        expected = case.says;
        actual = case.refused;
        ok =
          lib.length case.refused == 1 && lib.all (part: lib.hasInfix part (lib.head case.refused)) case.says;
      }
    else
      {
        inherit (case) expected;
        actual = case.expr;
        ok = case.expr == case.expected;
      };

  attempt =
    case:
    let
      # Forced as a whole, so that an error deep inside is this case's and not everyone's.
      tried = builtins.tryEval (
        let
          result = judge case;
        in
        builtins.deepSeq result result
      );
    in
    if tried.success then
      tried.value
    else
      {
        ok = false;
        expected = case.expected or case.says;
        actual = "evaluation failed; evaluate -A failing.\"<name>\" for the reason";
      };
in
{
  results = lib.mapAttrs (_: attempt) cases;

  # The same without the net, to read why one of them cannot be evaluated.
  failing = lib.mapAttrs (_: judge) cases;

  inherit errors;
  says = lib.mapAttrs (_: case: case.says) errors;

  # What the examples render, for the checks of other languages: { "<example>" = { manifest; env; }; }.
  inherit (harness) rendered;
}
