# Ralph and aider-wrapper: switched on together, and how they share what they work on.
{
  lib,
  light,
  messages,
  rendered,
  ...
}:
let
  # The stack with both, with more settings of services.aistack.
  working = settings: light (lib.recursiveUpdate { services.ralph-wiggum.enable = true; } settings);
  services = settings: (working settings).services.aistack.manifest.services;
  both = lib.filterAttrs (
    name: _:
    lib.elem name [
      "aider-wrapper"
      "ralph-wiggum"
    ]
  );
  found = both (services { });
in
{
  "neither is there by default" = {
    expr = both (light { }).services.aistack.manifest.services;
    expected = { };
  };

  "Ralph brings aider-wrapper along" = {
    expr = lib.attrNames (services { });
    expected = [
      "aider-wrapper"
      "llama-cpp"
      "postgres"
      "qdrant"
      "ralph-wiggum"
      "redis"
    ];
  };

  "aider-wrapper can be had alone" = {
    expr = lib.attrNames (services {
      services.ralph-wiggum.enable = false;
      services.aider-wrapper.enable = true;
    });
    expected = [
      "aider-wrapper"
      "llama-cpp"
      "postgres"
      "qdrant"
      "redis"
    ];
  };

  "ports and dependencies are the plan's" = {
    expr = lib.mapAttrs (_: service: { inherit (service) port dependsOn wants; }) found;
    expected = {
      aider-wrapper = {
        port = 8099;
        dependsOn = [ "llama-cpp" ];
        wants = [ ];
      };
      ralph-wiggum = {
        port = 8098;
        dependsOn = [ "aider-wrapper" ];
        wants = [ ];
      };
    };
  };

  "their own settings reach their containers, and no other" = {
    expr =
      let
        changed = services {
          ralph = {
            maxConcurrentTasks = 3;
            iterationTimeout = 60;
            verifyTimeout = 61;
            approvalTimeout = 62;
            taskTimeout = 63;
            retainedTasks = 64;
          };
          aider = {
            silenceTimeout = 65;
            mapTokens = 66;
            editFormat = "diff";
          };
        };
      in
      [
        changed.ralph-wiggum.environment
        changed.aider-wrapper.environment
      ];
    expected = [
      {
        HOME = "/tmp";
        RALPH_WORKSPACE_PATH = "/workspace";
        RALPH_MAX_CONCURRENT_TASKS = "3";
        RALPH_ITERATION_TIMEOUT_SECONDS = "60";
        RALPH_VERIFY_TIMEOUT_SECONDS = "61";
        RALPH_APPROVAL_TIMEOUT_SECONDS = "62";
        RALPH_TASK_TIMEOUT_SECONDS = "63";
        RALPH_RETAINED_TASKS = "64";
      }
      {
        HOME = "/tmp";
        # As many runs as tasks.
        AIDER_WRAPPER_MAX_CONCURRENT = "3";
        AIDER_WRAPPER_SILENCE_SECONDS = "65";
        AIDER_WRAPPER_MAP_TOKENS = "66";
        AIDER_WRAPPER_EDIT_FORMAT = "diff";
      }
    ];
  };

  "an iteration that may take longer than its task is refused" = {
    refused = messages { ralph.taskTimeout = 600; };
    says = [
      "services.aistack.ralph.iterationTimeout (900 s) is longer than services.aistack.ralph.taskTimeout (600 s)"
    ];
  };

  "neither is published on the host" = {
    expr = lib.concatMap (service: service.publish) (lib.attrValues found);
    expected = [ ];
  };

  "both are asked whether they live, and a candidate whether it finds what it needs" = {
    expr = lib.mapAttrs (_: service: [
      service.probe.path
      (map (request: request.path) service.deploy.test.requests)
    ]) found;
    expected = {
      aider-wrapper = [
        "/health"
        [ "/ready" ]
      ];
      ralph-wiggum = [
        "/health"
        [ "/ready" ]
      ];
    };
  };

  "neither runs as root, has a capability, or can write its root file system" = {
    expr = lib.unique (lib.mapAttrsToList (_: service: { inherit (service) user hardening; }) found);
    expected = [
      {
        user = "1000:1000";
        hardening = {
          noNewPrivileges = true;
          capDrop = [ "all" ];
          capAdd = [ ];
          readOnly = true;
          tmpfs = [ "/tmp" ];
        };
      }
    ];
  };

  "each has a volume of its own, and both have the workspaces" = {
    expr = lib.mapAttrs (_: service: service.volumes) found;
    expected = lib.genAttrs [ "aider-wrapper" "ralph-wiggum" ] (name: [
      "/var/lib/aistack/volumes/${name}:/data"
      "/var/lib/aistack/volumes/workspaces:/workspace"
    ]);
  };

  "a shared volume is made once" = {
    expr = lib.filter (lib.hasInfix "/workspaces ") (working { }).systemd.tmpfiles.rules;
    expected = [ "d /var/lib/aistack/volumes/workspaces 0700 1000 1000 - -" ];
  };

  "a key is given to those who need it, if there is one" = {
    expr = [
      (lib.mapAttrs (_: service: service.secrets) found)
      (lib.mapAttrs (_: service: service.secrets) (
        both (services {
          secrets = {
            AIDER_WRAPPER_API_KEY.file = "/run/secrets/a";
            RALPH_WIGGUM_API_KEY.file = "/run/secrets/r";
          };
        })
      ))
    ];
    expected = [
      {
        aider-wrapper = [ ];
        ralph-wiggum = [ ];
      }
      {
        aider-wrapper = [ "AIDER_WRAPPER_API_KEY" ];
        ralph-wiggum = [
          "RALPH_WIGGUM_API_KEY"
          "AIDER_WRAPPER_API_KEY"
        ];
      }
    ];
  };

  "their images are those that the flake makes" = {
    expr = lib.mapAttrs (_: service: service.image.ref) found;
    expected = {
      aider-wrapper = "localhost/aistack-images/aider-wrapper:1";
      ralph-wiggum = "localhost/aistack-images/ralph-wiggum:1";
    };
  };

  "another user for one of them is refused, for both write to the workspaces" = {
    refused = messages {
      services.ralph-wiggum = {
        enable = true;
        user = "1001:1001";
      };
    };
    says = [
      "services.aistack.services.ralph-wiggum.user is `1001:1001`"
      "services.aistack.services.aider-wrapper.user is `1000:1000`"
    ];
  };

  "an example has both, and the reference stack neither" = {
    expr = map (name: lib.attrNames (both (builtins.fromJSON rendered.${name}.manifest).services)) [
      "ralph"
      "reference"
    ];
    expected = [
      [
        "aider-wrapper"
        "ralph-wiggum"
      ]
      [ ]
    ];
  };
}
