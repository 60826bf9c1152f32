# What Nix itself refuses, because a value has the wrong type: { "<sentence>" = { expr; says = [ … ]; }; }. Each `expr`
# fails, and the message on standard error must contain every part of `says`.
{ light, plain, ... }:
let
  environment = settings: (light settings).services.aistack.manifest.environment;
  service =
    overrides: (light { services.app = plain // overrides; }).services.aistack.manifest.services.app;
in
{
  "a value with a blank is outside the .env grammar" = {
    expr = environment { environment.GREETING = "hello world"; };
    says = [
      "services.aistack.environment.GREETING"
      "every .env reader takes alike"
      "no blank, quote, $ or #"
    ];
  };
  "a value with a dollar is outside the .env grammar" = {
    expr = environment { environment.GREETING = "$HOME"; };
    says = [
      "services.aistack.environment.GREETING"
      "every .env reader takes alike"
    ];
  };
  "a collector's address with a quote is outside the .env grammar" = {
    expr = environment { telemetry.otel.endpoint = "\"x\""; };
    says = [
      "services.aistack.telemetry.otel.endpoint"
      "every .env reader takes alike"
    ];
  };
  "a telemetry path is absolute" = {
    expr = environment { telemetry.path = "data"; };
    says = [
      "services.aistack.telemetry.path"
      "absolute path without blanks or quotes"
    ];
  };
  "a container's value is one line" = {
    expr = service { environment.MOTD = "a\nb"; };
    says = [
      "services.aistack.services.app.environment.MOTD"
      "string on one line"
    ];
  };
  "a user is a number" = {
    expr = service { user = "nobody"; };
    says = [
      "services.aistack.services.app.user"
      "numeric user"
    ];
  };
  "a published port reads like one" = {
    expr = service { publish = [ "eighty" ]; };
    says = [
      "services.aistack.services.app.publish"
      "127.0.0.1:8080:80"
    ];
  };
  "a timeout is more than nothing" = {
    expr = service {
      port = 80;
      health = {
        kind = "tcp";
        timeout = 0;
      };
    };
    says = [
      "services.aistack.services.app.health.timeout"
      "positive number of seconds"
    ];
  };
  "a model is no path literal" = {
    expr = environment { llama-cpp.model = ./errors.nix; };
    says = [
      "services.aistack.llama-cpp.model"
      "written as a string"
    ];
  };
  "a subnet is one" = {
    expr = (light { network.subnet = "10.89.100.7/24"; }).services.aistack.network.gateway;
    says = [
      "services.aistack.network.subnet"
      "10.89.100.0/24"
    ];
  };
  "the gateway follows from the subnet" = {
    expr = (light { network.gateway = "10.89.100.2"; }).services.aistack.network.gateway;
    says = [
      "services.aistack.network.gateway"
      "read-only"
    ];
  };
  "an option that does not exist is named" = {
    expr = service { dependOn = [ "postgres" ]; };
    says = [ "services.aistack.services.app.dependOn" ];
  };
}
