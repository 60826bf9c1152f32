# Deployments: what is declared about them, what recovers them, and what asks before a generation is activated.
{
  lib,
  light,
  lightModule,
  messages,
  plain,
  reference,
  lines,
  words,
  pkgs,
  ...
}:
let
  text = name: reference.systemd.units.${name}.text;
  probed = plain // {
    port = 80;
    health.kind = "tcp";
  };
  with' = app: { services.app = lib.recursiveUpdate probed app; };
  deploy = app: (light (with' app)).services.aistack.manifest.services.app.deploy;
  trigger = app: (light (with' app)).systemd.services.podman-aistack-app.restartTriggers;
  recover = settings: (light settings).systemd.services.aistack-recover;

  stack.services.aistack = {
    enable = true;
    secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
  };
  preSwitchChecks.options.system.preSwitchChecks = lib.mkOption {
    type = lib.types.attrsOf lib.types.str;
    default = { };
  };
in
{
  "a deployment restarts, and tests for three seconds, unless something else is said" = {
    expr = deploy { };
    expected = {
      strategy = "restart";
      test = {
        soakSeconds = 3;
        timeoutSeconds = 10;
        requests = [ ];
        openapi = null;
      };
    };
  };

  "the manifest has all that is said" = {
    expr = deploy {
      deploy = {
        strategy = "bridge";
        test = {
          soakSeconds = 0;
          timeout = 60;
          requests = [
            { path = "/v1/models"; }
            {
              method = "POST";
              path = "/v1/completions?n=1";
              headers.Content-Type = "application/json";
              body = "{}";
              status = 400;
              contains = [ "prompt" ];
            }
          ];
          openapi = "/srv/openapi.json";
        };
      };
    };
    expected = {
      strategy = "bridge";
      test = {
        soakSeconds = 0;
        timeoutSeconds = 60;
        requests = [
          {
            method = "GET";
            path = "/v1/models";
            headers = { };
            body = null;
            status = 200;
            contains = [ ];
          }
          {
            method = "POST";
            path = "/v1/completions?n=1";
            headers.Content-Type = "application/json";
            body = "{}";
            status = 400;
            contains = [ "prompt" ];
          }
        ];
        openapi = "/srv/openapi.json";
      };
    };
  };

  "how a deployment goes about it restarts nothing" = {
    expr = map (app: trigger app == trigger { }) [
      { deploy.strategy = "bridge"; }
      { deploy.test.soakSeconds = 30; }
      { deploy.test.requests = [ { path = "/"; } ]; }
      { environment.LOG_LEVEL = "debug"; }
    ];
    expected = [
      true
      true
      true
      false
    ];
  };

  "a bridge beside data of its own is refused" = {
    refused = messages (with' {
      deploy.strategy = "bridge";
      volumes = [
        "/srv/config:/config:ro"
        "/srv/models:/models:Z,ro"
        "/srv/data:/data"
      ];
    });
    says = [
      "services.aistack.services.app.deploy.strategy is `bridge`, but two containers would write to /srv/data:/data."
      "Use `restart`, or mount it read-only (`:ro`)."
    ];
  };

  "a bridge beside what is only read is none of that" = {
    expr = messages (with' {
      deploy.strategy = "bridge";
      volumes = [ "/srv/models:/models:Z,ro" ];
    });
    expected = [ ];
  };

  "a bridge that nobody can ask is refused" = {
    refused = messages {
      services.app = plain // {
        deploy.strategy = "bridge";
      };
    };
    says = [
      "services.aistack.services.app.deploy.strategy is `bridge`, but nobody could tell when the bridge is ready."
      "Set services.aistack.services.app.health.kind, or use `restart`."
    ];
  };

  "requests without a port are refused" = {
    refused = messages {
      services.app = plain // {
        deploy.test.requests = [ { path = "/"; } ];
      };
    };
    says = [
      "services.aistack.services.app.deploy.test has requests, but there is no port to send them to."
      "Set services.aistack.services.app.port."
    ];
  };

  "and so is an OpenAPI document" = {
    refused = messages {
      services.app = plain // {
        deploy.test.openapi = "/srv/openapi.json";
      };
    };
    says = [ "services.aistack.services.app.deploy.test has requests" ];
  };

  "what is external or switched off is not asked how it is deployed" = {
    expr = messages {
      services = {
        app = probed // {
          enable = false;
          deploy.strategy = "bridge";
          volumes = [ "/srv/data:/data" ];
        };
        far = {
          port = 80;
          external.host = "far.example.org";
          deploy.strategy = "bridge";
        };
      };
    };
    expected = [ ];
  };

  "what was cut off is decided before any service starts, at every start of the stack" = {
    expr = {
      before = lib.sort lib.lessThan (words "Before" (text "aistack-recover.service"));
      start = lines "ExecStart" (text "aistack-recover.service");
      inherit (reference.systemd.services.aistack-recover) wantedBy;
    };
    expected = {
      before = map (name: "podman-aistack-${name}.service") [
        "app"
        "llama-cpp"
        "postgres"
        "qdrant"
        "redis"
      ];
      start = [ "/usr/bin/python3 -I -S /usr/bin/aistack-hook recover before-start" ];
      wantedBy = [ "aistack.target" ];
    };
  };

  "no unit needs it, so that no service waits in vain for a recovery that fails" = {
    expr = lib.attrNames (
      lib.filterAttrs (
        _: unit:
        lib.any (key: lib.any (lib.hasPrefix "aistack-recover") (words key unit.text)) [
          "Requires"
          "BindsTo"
          "Requisite"
        ]
      ) (lib.filterAttrs (name: _: lib.hasInfix "aistack" name) reference.systemd.units)
    );
    expected = [ ];
  };

  "what is external has no unit to go before" = {
    expr =
      (recover {
        services.far = {
          port = 80;
          external.host = "far.example.org";
        };
      }).before;
    expected = (recover { }).before;
  };

  "a slow start has the time that a way back takes" = {
    expr =
      let
        limit =
          seconds:
          (recover (with' {
            health.startTimeout = seconds;
          })).serviceConfig.TimeoutStartSec;
      in
      limit 3000 > 3000 && limit 3000 - limit 2000 >= 1000;
    expected = true;
  };

  "a switch cuts no recovery off, and a start limit does not either" = {
    expr =
      map
        (name: {
          changed = lines "X-RestartIfChanged" (text "${name}.service");
          limit = lines "StartLimitIntervalSec" (text "${name}.service");
          type = lines "Type" (text "${name}.service");
        })
        [
          "aistack-recover"
          "aistack-recover-late"
        ];
    expected = lib.genList (_: {
      changed = [ "false" ];
      limit = [ "0" ];
      type = [ "oneshot" ];
    }) 2;
  };

  "the timer that watches a deployment runs only while a deployment starts it" = {
    expr = {
      inherit (reference.systemd.timers.aistack-recover-late) wantedBy;
      late = lines "ExecStart" (text "aistack-recover-late.service");
      starter = reference.systemd.services.aistack-recover-late.wantedBy;
      again = lines "OnUnitInactiveSec" (text "aistack-recover-late.timer");
    };
    expected = {
      wantedBy = [ ];
      late = [ "/usr/bin/python3 -I -S /usr/bin/aistack-hook recover late" ];
      starter = [ ];
      again = [ "15s" ];
    };
  };

  "a NixOS that checks before a switch asks aistack, with the system and the action" = {
    expr =
      (lightModule {
        imports = [
          stack
          preSwitchChecks
        ];
      }).system.preSwitchChecks;
    expected.aistack = ''
      ${pkgs.aistack}/bin/aistack preswitch "$1" "''${2-switch}"
    '';
  };

  "one that does not know such checks is not asked for them" = {
    expr = (lightModule stack) ? system;
    expected = false;
  };

  "without a stack there is nothing to recover or to check" = {
    expr =
      let
        config = lightModule { imports = [ preSwitchChecks ]; };
      in
      {
        inherit (config.system) preSwitchChecks;
        services = lib.attrNames config.systemd.services;
      };
    expected = {
      preSwitchChecks = { };
      services = [ ];
    };
  };
}
