# Published ports: 8080, "8080", "8080:80", "127.0.0.1:8080:80", "[::1]:8080:80/udp".
{ lib }:
let
  number = "[0-9]{1,5}";
  address = "[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+|\\[[0-9a-fA-F:]+]";
  pattern = "((${address}):)?(${number})(:(${number}))?(/(tcp|udp))?";
  isWildcard =
    addr:
    lib.elem addr [
      "0.0.0.0"
      "[::]"
      "::"
    ];
in
rec {
  isShort = text: builtins.match pattern text != null;

  # The container's port stays out where it was not said: the service's own port is meant then.
  parse =
    value:
    if lib.isInt value then
      { hostPort = value; }
    else
      let
        parts = builtins.match pattern value;
        at = lib.elemAt parts;
      in
      {
        hostPort = lib.toIntBase10 (at 2);
      }
      // lib.optionalAttrs (at 1 != null) { address = at 1; }
      // lib.optionalAttrs (at 4 != null) { containerPort = lib.toIntBase10 (at 4); }
      // lib.optionalAttrs (at 6 != null) { protocol = at 6; };

  # Whether two published ports would claim the same socket of the host.
  clash =
    a: b:
    a.hostPort == b.hostPort
    && a.protocol == b.protocol
    && (a.address == b.address || isWildcard a.address || isWildcard b.address);

  toPodman =
    port:
    "${port.address}:${toString port.hostPort}:${toString port.containerPort}"
    + lib.optionalString (port.protocol != "tcp") "/${port.protocol}";
}
