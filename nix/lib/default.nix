# What the module needs beyond Nixpkgs' lib: option types, the dependency graph, image references and
# the text of the generated files. Everything here is a pure function of its arguments.
{ lib }:
import ./assertions.nix { inherit lib; }
// {
  types = import ./types.nix { inherit lib; };
  graph = import ./graph.nix { inherit lib; };
  env = import ./env.nix { inherit lib; };
  image = import ./image.nix { inherit lib; };
  timing = import ./timing.nix { inherit lib; };
  hookUnit = import ./hook-unit.nix { inherit lib; };
  json = import ./json.nix { inherit lib; };
  publish = import ./publish.nix { inherit lib; };
  # What the hooks need beside podman to look at the network and mend it.
  networkTools = pkgs: [
    pkgs.iproute2
    pkgs.iptables
    pkgs.nftables
  ];
}
