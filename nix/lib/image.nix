# Image references: registry/name:tag@digest.
{ lib }:
let
  # Tags that name a moving target by convention.
  floating = [
    "latest"
    "main"
    "master"
    "edge"
    "nightly"
    "dev"
    "stable"
    "rolling"
  ];
in
rec {
  tag =
    ref:
    let
      # A colon before the last slash belongs to the registry's port.
      match = builtins.match ".*:([^:/@]+)" (lib.head (lib.splitString "@" ref));
    in
    if match == null then null else lib.head match;

  isFloating =
    ref:
    let
      pinned = lib.hasInfix "@sha256:" ref;
      found = tag ref;
    in
    !pinned && (found == null || lib.elem found floating);
}
