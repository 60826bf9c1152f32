# JSON for people: one key a line, in the order of the alphabet, so that a change reads well in a diff.
{ lib }:
let
  write =
    indent: value:
    let
      deeper = indent + "  ";
      block =
        open: close: lines:
        if lines == [ ] then
          open + close
        else
          "${open}\n${lib.concatMapStringsSep ",\n" (line: deeper + line) lines}\n${indent}${close}";
    in
    if lib.isDerivation value then
      builtins.toJSON value
    else if lib.isAttrs value then
      block "{" "}" (
        lib.mapAttrsToList (name: item: "${builtins.toJSON name}: ${write deeper item}") value
      )
    else if lib.isList value then
      block "[" "]" (map (write deeper) value)
    else
      builtins.toJSON value;
in
{
  pretty = value: write "" value + "\n";
}
