# Services of the manifest -> oci-containers, with the hooks, ordering and limits this stack wants.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };
  inherit (cfg) manifest;

  containers = lib.filterAttrs (_: service: service.external == null) manifest.services;
  isContainer = name: containers ? ${name};
  unitOf = name: containers.${name}.unit;

  container = name: service: {
    image = service.image.live;
    # aistack.target starts it.
    autoStart = false;
    hostname = name;
    inherit (service) user;
    cmd = service.command;
    ports = map aistack.publish.toPodman service.publish;
    environmentFiles = [ "${manifest.runtimeDir}/${name}/env" ];
    volumes =
      service.volumes
      ++ map (key: "${manifest.runtimeDir}/${name}/secrets/${key}:/run/secrets/${key}:ro") (
        lib.filter (key: manifest.secrets.${key}.as or null == "file") service.secrets
      );
    extraOptions = [
      "--pull=never"
      "--network=${manifest.network.name}"
      "--network-alias=${name}"
      # Readiness is asked from outside (ExecStartPost); podman's own timers would only add units that come and go.
      "--no-healthcheck"
      "--stop-timeout=${toString service.stopTimeoutSeconds}"
    ]
    ++ lib.optional service.hardening.noNewPrivileges "--security-opt=no-new-privileges"
    ++ map (capability: "--cap-drop=${capability}") service.hardening.capDrop
    ++ map (capability: "--cap-add=${capability}") service.hardening.capAdd
    ++ lib.optional service.hardening.readOnly "--read-only"
    ++ map (mount: "--tmpfs=${mount}") service.hardening.tmpfs
    ++ lib.optional (service.resources.memory != null) "--memory=${service.resources.memory}"
    ++ lib.optional (service.resources.cpus != null) "--cpus=${toString service.resources.cpus}"
    ++ lib.optional (service.resources.pids != null) "--pids-limit=${toString service.resources.pids}"
    ++ map (device: "--device=${device}") service.devices
    ++ service.extraOptions;
  };

  # Stronger than the plain values of oci-containers, weaker than an administrator's mkForce.
  override = lib.mkOverride 90;

  unit =
    name: service:
    let
      times = aistack.timing manifest service;
    in
    {
      description = "${name} of the local AI stack";
      wantedBy = [ "aistack.target" ];
      partOf = [ "aistack.target" ];
      # The start hook pulls the image if it is not there; only then is the outside world needed, and a
      # stack whose images are all here must come up without it.
      wants = override (
        [ "aistack-network.service" ]
        ++ map unitOf (lib.filter isContainer (lib.unique (service.dependsOn ++ service.wants)))
      );
      # Not Requires, on the network neither: what stops or fails must not take its dependents along, nor
      # eat their start jobs unseen. That it is really there is for the start hook to find out and to say.
      after = override (
        [ "aistack-network.service" ] ++ map unitOf (lib.filter isContainer service.dependsOn)
      );
      onFailure = [ "aistack-rollback@${name}.service" ];
      startLimitBurst = times.burst;
      startLimitIntervalSec = times.startLimitInterval;
      restartTriggers = [
        (builtins.hashString "sha256" (
          builtins.unsafeDiscardStringContext (
            builtins.toJSON [
              # How a deployment goes about it changes nothing of what runs.
              (removeAttrs service [ "deploy" ])
              manifest.network
              (lib.optionalAttrs service.stackEnvironment manifest.environment)
              (lib.getAttrs (lib.filter (key: manifest.secrets ? ${key}) service.secrets) manifest.secrets)
            ]
          )
        ))
      ];
      serviceConfig = {
        Restart = override "always";
        # OnFailure fires once, when the start limit is hit, and jobs that wait for this unit go on waiting until then.
        RestartMode = "direct";
        RestartSec = "100ms";
        # A container that ends by SIGTERM or SIGKILL was stopped, and has not failed.
        SuccessExitStatus = "143 137";
        TimeoutStartSec = override times.start;
        TimeoutStopSec = override times.stop;
        # In place of oci-containers' own, whose `podman rm` costs as much as the hook: `podman run --replace` does it
        # again, and the hook removes a stale file of the container's id.
        ExecStartPre = override [ "${cfg.hook} start-pre ${name}" ];
        ExecStartPost = [ "${cfg.hook} await-ready ${name}" ];
      };
    };

  # Host directories below stateDir/volumes, each given to the user that its container runs as.
  volumeDirectories = lib.unique (
    lib.concatMap (
      service:
      let
        root = "${cfg.stateDir}/volumes/";
        owner = lib.splitString ":" (if service.user == null then "0:0" else service.user);
        directories = lib.filter (lib.hasPrefix root) (
          map (volume: lib.head (lib.splitString ":" volume)) service.volumes
        );
      in
      map (path: "d ${path} 0700 ${lib.head owner} ${lib.last owner} - -") directories
    ) (lib.attrValues containers)
  );
in
{
  config = lib.mkIf cfg.enable {
    virtualisation.oci-containers.backend = lib.mkDefault "podman";

    virtualisation.oci-containers.containers = lib.mapAttrs' (
      name: service: lib.nameValuePair service.container (container name service)
    ) containers;

    systemd.services = lib.mapAttrs' (
      name: service: lib.nameValuePair (lib.removeSuffix ".service" service.unit) (unit name service)
    ) containers;

    systemd.tmpfiles.rules =
      lib.optional (volumeDirectories != [ ]) "d ${cfg.stateDir}/volumes 0755 root root - -"
      ++ volumeDirectories;
  };
}
