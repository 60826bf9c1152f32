# The options themselves: what documentation is made of.
{
  lib,
  evaluate,
  ...
}:
let
  options = lib.filter (option: lib.hasPrefix "services.aistack." option.name) (
    lib.optionAttrSetToDocList (evaluate [ ]).options
  );
  visible = lib.filter (option: option.visible && !option.internal) options;
  names = map (option: option.name);
  text =
    option:
    if lib.isString option.description then option.description else option.description.text or "";

  # What needs no example, because it can only be switched on or is made of options.
  speaksForItself =
    option:
    lib.hasSuffix ".enable" option.name || option.readOnly || lib.hasSuffix ".package" option.name;
in
{
  "there are options" = {
    expr = lib.length visible > 90;
    expected = true;
  };
  "every option has a description that ends with a period" = {
    expr = names (
      lib.filter (
        option:
        !lib.hasSuffix "." (lib.removeSuffix "\n" (text option))
        && !lib.hasSuffix ".enable" option.name
        && !lib.hasSuffix ".package" option.name
      ) options
    );
    expected = [ ];
  };
  "every option has an example" = {
    expr = names (lib.filter (option: !(option ? example) && !speaksForItself option) visible);
    expected = [ ];
  };
  "no default is left to the reader to evaluate" = {
    # A default that cannot be shown has a text instead.
    expr = names (
      lib.filter (
        option: option ? default && !(builtins.tryEval (builtins.deepSeq option.default true)).success
      ) options
    );
    expected = [ ];
  };
  "no default mentions this machine or a store" = {
    expr = names (
      lib.filter (option: lib.hasInfix "/nix/store" (builtins.toJSON (option.default or null))) visible
    );
    expected = [ ];
  };
  "the machinery is not shown" = {
    expr = lib.filter (name: lib.elem name (names visible)) [
      "services.aistack.hook"
      "services.aistack.manifest"
      "services.aistack.derivedSections"
      "services.aistack.sections"
      "services.aistack.llama-cpp.modelFile"
    ];
    expected = [ ];
  };
}
