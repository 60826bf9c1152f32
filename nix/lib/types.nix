# Option types with names that say, in the error Nix prints, what a value should have looked like.
{ lib }:
let
  inherit (lib) types;
  env = import ./env.nix { inherit lib; };

  named =
    name: description: check: base:
    lib.mkOptionType {
      inherit name description check;
      descriptionClass = "noun";
      inherit (base) merge;
    };
in
rec {
  # A value of the public .env: the characters podman, systemd, python-dotenv and a shell read alike.
  envValue =
    named "envValue"
      "value that every .env reader takes alike (letters, digits and _ . / : @ % + , = - only; no blank, quote, $ or #)"
      (value: lib.isString value && env.isValue value)
      types.str;

  # The same, for options where a number or a boolean reads better than its text.
  envScalar = types.oneOf [
    types.bool
    types.int
    envValue
  ];

  # A value that one container alone sees: podman takes everything up to the line's end as it is.
  containerEnvScalar = types.oneOf [
    types.bool
    types.int
    oneLine
  ];

  oneLine = named "oneLine" "string on one line" (
    value: lib.isString value && builtins.match "[^\n\r]*" value != null
  ) types.str;

  # A path of the host, written as a string: a path literal would be copied into the world-readable store.
  hostPath =
    named "hostPath"
      "absolute path of the host, written as a string (a path literal would be copied to the Nix store)"
      (value: lib.isString value && builtins.match "/[^\n\r]*" value != null)
      types.str;

  # A number of seconds that is more than none.
  seconds = types.ints.positive // {
    description = "positive number of seconds";
  };

  # Containers run as numbers, so that file checks before the start need no look inside the image.
  numericUser = types.strMatching "[0-9]+(:[0-9]+)?" // {
    description = "numeric user, or user:group (such as 999:999)";
  };
}
