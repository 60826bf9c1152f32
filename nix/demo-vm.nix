# A virtual machine with the demonstration, on the terminal that starts it: root logs in by itself, and
# the machine's port 8000 is the host's. Its disk is ./aistack-demo.qcow2.
{
  lib,
  nixpkgs,
  pkgs,
}:
let
  machine =
    { config, modulesPath, ... }:
    {
      imports = [
        (modulesPath + "/virtualisation/qemu-vm.nix")
        ./demo.nix
      ];

      virtualisation = {
        cores = 2;
        diskSize = 8192;
        forwardPorts = [
          {
            from = "host";
            host.port = 8000;
            guest.port = 8000;
          }
        ];
        graphics = false;
        memorySize = 3072;
      };
      # QEMU forwards to the machine's own address, where the loopback does not answer.
      services.aistack.services.app.publish = lib.mkForce [ "0.0.0.0:8000:8000" ];
      networking.firewall.allowedTCPPorts = [ 8000 ];
      networking.hostName = "aistack-demo";

      services.getty = {
        autologinUser = "root";
        helpLine = ''
          The stack is starting. Look at it:     aistack status
          What the containers say:               journalctl -f -u 'podman-aistack-*'
          End the machine:                       poweroff
        '';
      };

      nixpkgs.pkgs = pkgs;
      system.stateVersion = config.system.nixos.release;
    };
in
import (nixpkgs + "/nixos/lib/eval-config.nix") {
  inherit lib;
  system = null;
  modules = [ machine ];
}
