# The .env file: its grammar, its keys, its text.
{ lib }:
let
  # Where a key with one of these words in it is rarely anything but a secret.
  secretWords = "PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|APIKEY";
  secretEndings = "TOKEN|(API|ACCESS|AUTH|PRIVATE|SIGNING|ENCRYPTION|MASTER|SESSION|LICENSE)_KEY";
in
rec {
  isKey = key: builtins.match "[A-Z][A-Z0-9_]*" key != null;
  isValue = value: builtins.match "[A-Za-z0-9_./:@%+,=-]*" value != null;

  # Variables that a shell sets itself or does not let be set (bash and dash, measured), and those that change how
  # whoever has read the file finds programs or splits words. A container's own environment may have them.
  isShellOwn =
    key:
    builtins.match "BASH.*|COMP_WORDBREAKS|DIRSTACK|ENV|EPOCH(REALTIME|SECONDS)|E?UID|FUNCNAME|GROUPS|HISTCMD|IFS|LD_.*|LINENO|OPTIND|PATH|PPID|S?RANDOM|SECONDS|SHELLOPTS|SHLVL" key
    != null;

  # llama-cpp -> LLAMA_CPP
  prefix = service: lib.toUpper (lib.replaceStrings [ "-" ] [ "_" ] service);

  # What a value looks like in the file: booleans are words, as the plan writes them.
  toValue = value: if lib.isBool value then lib.boolToString value else toString value;

  # A name of a file that holds a secret (POSTGRES_PASSWORD_FILE) is not one itself.
  looksSecret =
    key:
    builtins.match ".*(${secretWords}).*|(.*_)?(${secretEndings})" key != null
    && builtins.match ".*_(FILE|PATH|DIR)" key == null;

  # postgres://user:password@host: a password inside a plain value.
  hasCredentials = value: builtins.match ".*://[^/@:]*:[^/@]+@.*" value != null;

  # sections: [ { title; values = { KEY = "value"; }; } ], in the order of the file.
  render =
    sections:
    let
      section =
        { title, values, ... }:
        lib.optionalString (values != { }) (
          "\n# ${title}\n" + lib.concatStrings (lib.mapAttrsToList (key: value: "${key}=${value}\n") values)
        );
    in
    "# Generated from services.aistack by Nix; edits are overwritten. It holds no secret.\n"
    + lib.concatMapStrings section sections;
}
