# Assertions, said the other way round: what is refused, why, and what to do about it.
{ lib }:
{
  refuse = condition: what: fix: {
    assertion = !condition;
    message = "${what} ${fix}";
  };

  # The refusals of every service, in one list.
  forEach = services: check: lib.concatLists (lib.mapAttrsToList check services);

  # `a`, `b`
  list = lib.concatMapStringsSep ", " (name: "`${name}`");

  # The option that declares a service.
  option = name: "services.aistack.services.${name}";
}
