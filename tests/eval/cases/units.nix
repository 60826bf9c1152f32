# What systemd gets: the units of the reference stack as NixOS renders them.
{
  lib,
  reference,
  full,
  light,
  lines,
  words,
  plain,
  pkgs,
  aistack,
  ...
}:
let
  text = name: reference.systemd.units.${name}.text;
  unit = service: text "podman-aistack-${service}.service";
  own = lib.filterAttrs (name: _: lib.hasInfix "aistack" name) reference.systemd.units;
  containers = lib.filterAttrs (name: _: lib.hasPrefix "podman-aistack-" name) own;
  catalog = [
    "llama-cpp"
    "postgres"
    "qdrant"
    "redis"
  ];
  unitOf = service: "podman-aistack-${service}.service";

  # Without a module of NixOS in between: what the module itself asks for.
  service =
    settings: name: (light { services = settings; }).systemd.services."podman-aistack-${name}";
  trigger = settings: (light settings).systemd.services.podman-aistack-app.restartTriggers;
  app = plain // {
    port = 80;
  };

  hook = "/usr/bin/python3 -I -S /usr/bin/aistack-hook";
in
{
  "the stack has these units, and no others" = {
    expr = lib.attrNames own;
    expected = [
      "aistack-bless@.service"
      "aistack-bless@.timer"
      "aistack-health-30.service"
      "aistack-health-30.timer"
      "aistack-network.service"
      "aistack-recover-late.service"
      "aistack-recover-late.timer"
      "aistack-recover.service"
      "aistack-retry@.service"
      "aistack-retry@.timer"
      "aistack-rollback@.service"
      "aistack-secrets.path"
      "aistack-secrets.service"
      "aistack.target"
    ]
    ++ map unitOf ([ "app" ] ++ catalog);
  };

  "a container starts after its hard dependencies and the network" = {
    expr = lib.sort lib.lessThan (words "After" (unit "app"));
    expected = [ "aistack-network.service" ] ++ map unitOf catalog;
  };

  "and wants them, so that they are started with it" = {
    expr = lib.sort lib.lessThan (words "Wants" (unit "app"));
    expected = [ "aistack-network.service" ] ++ map unitOf catalog;
  };

  "it requires nothing, so that what stops or fails does not take it along" = {
    expr = lib.mapAttrsToList (_: unit: words "Requires" unit.text) containers;
    expected = lib.genList (_: [ ]) 5;
  };

  "nothing binds a container to another" = {
    expr = lib.filter (
      line:
      lib.any (key: lib.hasPrefix "${key}=" line) [
        "BindsTo"
        "Requisite"
        "Upholds"
        "PropagatesStopTo"
      ]
    ) (lib.concatMap (unit: lib.splitString "\n" unit.text) (lib.attrValues containers));
    expected = [ ];
  };

  "a container without dependencies waits for the network alone, and not for the outside world" = {
    expr = map (name: [
      (words "After" (unit name))
      (words "Wants" (unit name))
    ]) catalog;
    expected = lib.genList (_: [
      [ "aistack-network.service" ]
      [ "aistack-network.service" ]
    ]) 4;
  };

  "a soft dependency is wanted and not waited for" =
    let
      rendered = service {
        a = app // {
          wants = [ "redis" ];
        };
      } "a";
    in
    {
      expr = [
        rendered.wants
        rendered.after
      ];
      expected = [
        [
          "aistack-network.service"
          "podman-aistack-redis.service"
        ]
        [ "aistack-network.service" ]
      ];
    };

  "a soft dependency that is switched off is not wanted" = {
    expr =
      (service {
        a = app // {
          wants = [ "redis" ];
        };
        redis.enable = false;
      } "a").wants;
    expected = [ "aistack-network.service" ];
  };

  "a dependency elsewhere has no unit to wait for" =
    let
      config = light {
        services = {
          redis.external.host = "10.0.0.7";
          a = app // {
            dependsOn = [
              "redis"
              "postgres"
            ];
          };
        };
      };
      rendered = config.systemd.services.podman-aistack-a;
    in
    {
      expr = [
        rendered.after
        rendered.wants
        (config.systemd.services ? podman-aistack-redis)
        (config.virtualisation.oci-containers.containers ? aistack-redis)
      ];
      expected = [
        [
          "aistack-network.service"
          "podman-aistack-postgres.service"
        ]
        [
          "aistack-network.service"
          "podman-aistack-postgres.service"
        ]
        false
        false
      ];
    };

  "the target starts all containers, and stops them" = {
    expr = lib.mapAttrsToList (_: unit: [
      unit.wantedBy
      unit.requiredBy
      (words "PartOf" unit.text)
    ]) containers;
    expected = lib.genList (_: [
      [ "aistack.target" ]
      [ ]
      [ "aistack.target" ]
    ]) 5;
  };

  "the machine starts the target" = {
    expr = reference.systemd.units."aistack.target".wantedBy;
    expected = [ "multi-user.target" ];
  };

  "the start hook alone runs before the start, and the start replaces a container that was left" = {
    expr = [
      (lines "ExecStartPre" (unit "app"))
      (lines "ExecStartPost" (unit "app"))
      (lib.hasInfix " --replace " (
        lib.replaceStrings [ "\n" ] [ " " ] reference.systemd.services.podman-aistack-app.script
      ))
    ];
    expected = [
      [ "${hook} start-pre app" ]
      [ "${hook} await-ready app" ]
      true
    ];
  };

  "where podman writes the container's id is among the places that the start hook clears" = {
    expr =
      lib.any
        (
          path:
          lib.hasInfix "--cidfile=${path} " (
            lib.replaceStrings [ "\n" "'" ] [ " " "" ] reference.systemd.services.podman-aistack-app.script
          )
        )
        [
          "/run/podman-aistack-app.ctr-id"
          "/run/aistack-app/ctr-id"
        ];
    expected = true;
  };

  "restarts: direct, at once, ended by a limit that asks for a rollback" = {
    expr = map (key: lines key (unit "app")) [
      "Restart"
      "RestartMode"
      "RestartSec"
      "SuccessExitStatus"
      "StartLimitBurst"
      "OnFailure"
    ];
    expected = [
      [ "always" ]
      [ "direct" ]
      [ "100ms" ]
      [ "143 137" ]
      [ "3" ]
      [ "aistack-rollback@app.service" ]
    ];
  };

  # app: pullTimeout 60, startup 30, startTimeout 15, stopTimeout 5.
  "times of the app: the slowest step and 30 s to start, 15 s more than the container has to stop" = {
    expr = map (key: lines key (unit "app")) [
      "TimeoutStartSec"
      "TimeoutStopSec"
      "StartLimitIntervalSec"
    ];
    expected = [
      [ "90" ]
      [ "20" ]
      [ "30" ]
    ];
  };

  # By the catalog: pullTimeout 900, startup 30, startTimeout 300, stopTimeout 10.
  "times of a large model" =
    let
      rendered = (light { }).systemd.services.podman-aistack-llama-cpp;
    in
    {
      expr = [
        rendered.serviceConfig.TimeoutStartSec
        rendered.serviceConfig.TimeoutStopSec
        rendered.startLimitIntervalSec
      ];
      expected = [
        930
        25
        30
      ];
    };

  "a longer wait for dependencies makes every start longer" = {
    expr =
      (light {
        startup.timeoutSeconds = 2000;
      }).systemd.services.podman-aistack-redis.serviceConfig.TimeoutStartSec;
    expected = 2030;
  };

  "no unit may start or stop for ever" = {
    expr = lib.filter (
      name:
      lib.any
        (
          value:
          lib.elem value [
            "0"
            "infinity"
          ]
        )
        (
          lib.concatMap (key: lines key own.${name}.text) [
            "TimeoutStartSec"
            "TimeoutStopSec"
            "TimeoutSec"
          ]
        )
      || (
        lib.hasSuffix ".service" name
        && lib.hasInfix "Type=oneshot" own.${name}.text
        && lines "TimeoutStartSec" own.${name}.text == [ ]
      )
    ) (lib.attrNames own);
    expected = [ ];
  };

  "an administrator's mkForce is stronger" = {
    expr =
      lines "TimeoutStopSec"
        (full {
          services.aistack.enable = true;
          systemd.services.podman-aistack-redis.serviceConfig.TimeoutStopSec = lib.mkForce 7;
        }).systemd.units."podman-aistack-redis.service".text;
    expected = [ "7" ];
  };

  "what podman runs for the app" =
    let
      config = reference.virtualisation.oci-containers.containers.aistack-app;
    in
    {
      expr = {
        inherit (config)
          image
          autoStart
          hostname
          user
          cmd
          ports
          environment
          environmentFiles
          volumes
          dependsOn
          extraOptions
          ;
      };
      expected = {
        image = "localhost/aistack/app:live";
        autoStart = false;
        hostname = "app";
        user = "1000:1000";
        cmd = [ ];
        ports = [ "127.0.0.1:8000:8000" ];
        environment = { };
        environmentFiles = [ "/run/aistack/app/env" ];
        volumes = [ ];
        dependsOn = [ ];
        extraOptions = [
          "--pull=never"
          "--network=local-ai"
          "--network-alias=app"
          "--no-healthcheck"
          "--stop-timeout=5"
          "--security-opt=no-new-privileges"
          "--cap-drop=all"
          "--read-only"
        ];
      };
    };

  "every limit becomes an option of podman, the administrator's own last" = {
    expr =
      (light {
        network.name = "lab";
        services.a = app // {
          noNewPrivileges = false;
          capabilities = {
            drop = [ "all" ];
            add = [ "NET_BIND_SERVICE" ];
          };
          tmpfs = [ "/tmp:size=64m" ];
          resources = {
            memory = "1g";
            cpus = "1.5";
            pids = 100;
          };
          devices = [ "/dev/dri" ];
          extraOptions = [ "--shm-size=256m" ];
        };
      }).virtualisation.oci-containers.containers.aistack-a.extraOptions;
    expected = [
      "--pull=never"
      "--network=lab"
      "--network-alias=a"
      "--no-healthcheck"
      "--stop-timeout=10"
      "--cap-drop=all"
      "--cap-add=NET_BIND_SERVICE"
      "--tmpfs=/tmp:size=64m"
      "--memory=1g"
      "--cpus=1.5"
      "--pids-limit=100"
      "--device=/dev/dri"
      "--shm-size=256m"
    ];
  };

  "a secret as a file is mounted, one in the environment is not" = {
    expr =
      (light {
        secrets.SIGNING_KEY = {
          file = "/run/secrets/signing-key";
          as = "file";
        };
        services.a = app // {
          volumes = [ "/srv/a:/data" ];
          secrets = [
            "SIGNING_KEY"
            "POSTGRES_PASSWORD"
          ];
        };
      }).virtualisation.oci-containers.containers.aistack-a.volumes;
    expected = [
      "/srv/a:/data"
      "/run/aistack/a/secrets/SIGNING_KEY:/run/secrets/SIGNING_KEY:ro"
    ];
  };

  "no unit and no script names where a secret is kept, but for the one that watches it" = {
    expr = lib.filter (name: lib.hasInfix "postgres-password" own.${name}.text) (lib.attrNames own);
    expected = [ "aistack-secrets.path" ];
  };

  "every secret that a container is given is watched, once, and no other" = {
    expr =
      (light {
        secrets = {
          A.file = "/secrets/a";
          B.file = "/secrets/b";
          UNUSED.file = "/secrets/unused";
          ELSEWHERE.file = "/secrets/elsewhere";
        };
        services = {
          a = app // {
            secrets = [
              "A"
              "B"
            ];
          };
          b = app // {
            secrets = [ "A" ];
          };
          there = {
            port = 5433;
            external.host = "db.example.org";
            secrets = [ "ELSEWHERE" ];
          };
        };
      }).systemd.paths.aistack-secrets.pathConfig.PathChanged;
    expected = [
      "/secrets/a"
      "/secrets/b"
      "/run/secrets/postgres-password"
    ];
  };

  "with secretRotation off nothing is watched" = {
    expr =
      let
        config = light { secretRotation.enable = false; };
      in
      [
        (config.systemd.paths ? aistack-secrets)
        (config.systemd.services ? aistack-secrets)
        config.services.aistack.manifest.secretRotation
      ];
    expected = [
      false
      false
      { enable = false; }
    ];
  };

  "published ports, with the container's own port filled in" = {
    expr =
      (light {
        services.a = app // {
          publish = [
            8080
            "10.0.0.5:8081:90/udp"
            {
              address = "0.0.0.0";
              hostPort = 8082;
            }
          ];
        };
      }).virtualisation.oci-containers.containers.aistack-a.ports;
    expected = [
      "127.0.0.1:8080:80"
      "10.0.0.5:8081:90/udp"
      "0.0.0.0:8082:80"
    ];
  };

  "the network's unit lets the hook make it, or mend it, and again after a reload of the firewall" = {
    expr = map (key: lines key (text "aistack-network.service")) [
      "Type"
      "RemainAfterExit"
      "ExecStart"
      "ExecReload"
      "ExecStop"
    ];
    expected = [
      [ "oneshot" ]
      [ "true" ]
      [ "${hook} network local-ai" ]
      [ "${hook} network local-ai" ]
      [ "-/usr/bin/podman network rm local-ai" ]
    ];
  };

  "it follows the firewall: its reload and its restart are passed on, and waited for" = {
    expr = map (key: lines key (text "aistack-network.service")) [
      "ReloadPropagatedFrom"
      "PartOf"
      "After"
    ];
    expected = [
      [
        "firewall.service"
        "nftables.service"
      ]
      [ "firewall.service nftables.service" ]
      [ "firewall.service nftables.service" ]
    ];
  };

  "a switch to another network restarts its unit, and a switch to the same one does not" =
    let
      triggers = network: (light { inherit network; }).systemd.services.aistack-network.restartTriggers;
    in
    {
      expr = map (network: triggers network == triggers { }) [
        { name = "local-ai"; }
        { name = "lab"; }
        { subnet = "10.200.0.0/24"; }
        { interface = "ai0"; }
      ];
      expected = [
        true
        false
        false
        false
      ];
    };

  "it has time for a repair that waits for another one" = {
    expr = lines "TimeoutStartSec" (text "aistack-network.service");
    expected = [ "180" ];
  };

  "whatever mends the network has the programs for it" =
    let
      menders = lib.filterAttrs (
        name: _: name == "aistack-network" || lib.hasPrefix "aistack-health-" name
      ) reference.systemd.services;
      tools = [ pkgs.podman ] ++ aistack.networkTools pkgs;
      has = service: lib.all (tool: lib.elem tool service.path) tools;
    in
    {
      expr = [
        (lib.length (lib.attrNames menders) >= 2)
        (lib.all has (lib.attrValues menders))
      ];
      expected = [
        true
        true
      ];
    };

  "another network: the gateway, the interface and the firewall follow" =
    let
      config = light {
        network = {
          subnet = "10.200.0.0/16";
          interface = "ai0";
        };
      };
    in
    {
      expr = [
        config.services.aistack.network.gateway
        config.networking.firewall.interfaces.ai0
      ];
      expected = [
        "10.200.0.1"
        {
          allowedUDPPorts = [ 53 ];
          allowedTCPPorts = [ 53 ];
        }
      ];
    };

  "containers may ask the network's DNS through the firewall" = {
    expr = {
      inherit (reference.networking.firewall.interfaces.aistack0) allowedUDPPorts allowedTCPPorts;
    };
    expected = {
      allowedUDPPorts = [ 53 ];
      allowedTCPPorts = [ 53 ];
    };
  };

  "the units that follow a start call the hook once, and end" = {
    expr =
      map
        (verb: [
          (lines "ExecStart" (text "aistack-${verb}@.service"))
          (lines "Type" (text "aistack-${verb}@.service"))
          (lines "StartLimitIntervalSec" (text "aistack-${verb}@.service"))
        ])
        [
          "rollback"
          "retry"
          "bless"
        ];
    expected =
      map
        (verb: [
          [ "${hook} ${verb} %i" ]
          [ "oneshot" ]
          [ "0" ]
        ])
        [
          "rollback"
          "retry"
          "bless"
        ];
  };

  "a rollback outlasts the slowest start of the stack" = {
    # postgres: 3 * (90 + 30 + 60 + 35 + 1) + 60, and 60 more.
    expr = map (verb: lines "TimeoutStartSec" (text "aistack-${verb}@.service")) [
      "rollback"
      "retry"
    ];
    expected = [
      [ "768" ]
      [ "768" ]
    ];
  };

  "the timers: another try after 30 s, a blessing after probation, both ended by a stop" = {
    expr =
      map
        (
          name:
          map (key: lines key (text "aistack-${name}@.timer")) [
            "OnActiveSec"
            "AccuracySec"
            "PartOf"
            "RemainAfterElapse"
            "StartLimitIntervalSec"
            "Persistent"
            "WantedBy"
          ]
        )
        [
          "retry"
          "bless"
        ];
    expected = [
      [
        [ "30s" ]
        [ "100ms" ]
        [ "podman-aistack-%i.service" ]
        [ "false" ]
        [ "0" ]
        [ ]
        [ ]
      ]
      [
        [ "10s" ]
        [ "100ms" ]
        [ "podman-aistack-%i.service" ]
        [ "false" ]
        [ "0" ]
        [ ]
        [ ]
      ]
    ];
  };

  "hooks find podman, systemctl and journalctl" = {
    # Packages of the test are all at /usr; that each is named is what counts.
    expr =
      map
        (
          name:
          let
            path = map (package: package.name) reference.systemd.services.${name}.path;
          in
          [
            (lib.elem "podman" path)
            (lib.elem "systemd" path)
          ]
        )
        [
          "podman-aistack-app"
          "aistack-rollback@"
          "aistack-retry@"
          "aistack-bless@"
        ];
    expected = lib.genList (_: [
      true
      true
    ]) 4;
  };

  "a switch does not cut off a rollback" = {
    expr = map (verb: lines "X-RestartIfChanged" (text "aistack-${verb}@.service")) [
      "rollback"
      "retry"
      "bless"
    ];
    expected = lib.genList (_: [ "false" ]) 3;
  };

  "a switch restarts what changed: the image, its environment, the stack's, the network" = {
    expr = lib.length (
      lib.unique (
        map trigger [
          { services.app = app; }
          {
            services.app = app // {
              image = "registry.example.org/plain:1.1";
            };
          }
          {
            services.app = app // {
              environment.LOG_LEVEL = "debug";
            };
          }
          {
            services.app = app;
            environment.LOG_LEVEL = "debug";
          }
          {
            services.app = app;
            network.subnet = "10.200.0.0/24";
          }
        ]
      )
    );
    expected = 5;
  };

  "and nothing else" = {
    expr = lib.length (
      lib.unique (
        map trigger [
          {
            services.app = app // {
              stackEnvironment = false;
            };
          }
          {
            services.app = app // {
              stackEnvironment = false;
            };
            environment.LOG_LEVEL = "debug";
          }
          {
            services.app = app // {
              stackEnvironment = false;
            };
            services.other = app;
            rollback.retain = 2;
          }
        ]
      )
    );
    expected = 1;
  };

  "volumes below the state directory are made for the user of the container" = {
    expr =
      lib.filter (lib.hasInfix "aistack")
        (light {
          stateDir = "/srv/aistack";
          services = {
            a = app // {
              user = "7:8";
              volumes = [
                "/srv/aistack/volumes/a:/data"
                "/srv/elsewhere:/more"
              ];
            };
            b = app // {
              volumes = [ "/srv/aistack/volumes/b:/data:ro" ];
            };
            postgres.enable = false;
            qdrant.enable = false;
            redis.enable = false;
          };
        }).systemd.tmpfiles.rules;
    expected = [
      "d /srv/aistack 0755 root root - -"
      "d /srv/aistack/volumes 0755 root root - -"
      "d /srv/aistack/volumes/a 0700 7 8 - -"
      "d /srv/aistack/volumes/b 0700 0 0 - -"
    ];
  };

  "the command is there for everybody" = {
    expr = map (package: package.name) (light { }).environment.systemPackages;
    expected = [ "aistack" ];
  };

  "a stack that is switched off leaves nothing behind" =
    let
      config = full { services.aistack.enable = false; };
    in
    {
      expr = [
        (lib.filter (lib.hasInfix "aistack") (lib.attrNames config.systemd.units))
        (lib.filter (lib.hasPrefix "aistack") (lib.attrNames config.environment.etc))
        config.virtualisation.podman.enable
      ];
      expected = [
        [ ]
        [ ]
        false
      ];
    };

  "one health timer for each interval, and one process for all services of it" =
    let
      checked = app // {
        health = {
          kind = "http";
          interval = 5;
        };
      };
      config = light {
        services = {
          a = app // {
            health.kind = "http";
          };
          b = checked;
          c = checked;
        };
      };
      health = lib.filterAttrs (name: _: lib.hasPrefix "aistack-health-" name);
    in
    {
      expr = {
        commands = lib.mapAttrs (_: unit: unit.serviceConfig.ExecStart) (health config.systemd.services);
        timers = lib.attrNames (health config.systemd.timers);
      };
      expected = {
        commands = {
          aistack-health-5 = "${hook} health 5";
          aistack-health-30 = "${hook} health 30";
        };
        timers = [
          "aistack-health-30"
          "aistack-health-5"
        ];
      };
    };

  "a health timer is of the target, counts on the clock that nobody sets, and makes up for nothing" =
    {
      expr = {
        inherit (own."aistack-health-30.timer") wantedBy;
        set = lib.genAttrs [
          "PartOf"
          "OnActiveSec"
          "OnUnitActiveSec"
          "OnCalendar"
          "Persistent"
          "AccuracySec"
        ] (key: lines key own."aistack-health-30.timer".text);
      };
      expected = {
        wantedBy = [ "aistack.target" ];
        set = {
          PartOf = [ "aistack.target" ];
          OnActiveSec = [ "30s" ];
          OnUnitActiveSec = [ "30s" ];
          OnCalendar = [ ];
          Persistent = [ ];
          AccuracySec = [ "1000ms" ];
        };
      };
    };

  "a check each second is not put off by more than a tenth of it" = {
    expr =
      (light {
        services.a = app // {
          health = {
            kind = "http";
            interval = 1;
            timeout = 1;
          };
        };
      }).systemd.timers.aistack-health-1.timerConfig.AccuracySec;
    expected = "100ms";
  };

  "what runs elsewhere and what has no probe is not checked" = {
    expr = lib.filter (lib.hasPrefix "aistack-health-") (
      lib.attrNames
        (light {
          services = {
            postgres.external.host = "db.example.org";
            redis.enable = false;
            qdrant.enable = false;
            llama-cpp.enable = false;
            a = app;
          };
        }).systemd.timers
    );
    expected = [ ];
  };

  "a switch neither starts nor stops a health check" = {
    expr = lines "X-RestartIfChanged" own."aistack-health-30.service".text;
    expected = [ "false" ];
  };

  "the way back to another generation gets the time that takes" = {
    expr =
      map
        (
          policy:
          (light {
            rollback.policy = policy;
          }).systemd.services."aistack-rollback@".serviceConfig.TimeoutStartSec
        )
        [
          "system"
          "none"
        ];
    expected = [
      (600 + (light { }).systemd.services."aistack-rollback@".serviceConfig.TimeoutStartSec)
      (light { }).systemd.services."aistack-rollback@".serviceConfig.TimeoutStartSec
    ];
  };
}
