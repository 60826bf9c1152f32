"""Debian guests under systemd-nspawn that run the VM tests' scripts on a machine without NixOS."""
