# stack.json: all that the hooks and the command line know about the stack.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };

  enabled = lib.filterAttrs (_: service: service.enable) cfg.services;

  probe =
    service:
    let
      inherit (service) health;
    in
    if health.kind == null then
      null
    else
      {
        inherit (health)
          kind
          expect
          user
          database
          secret
          failures
          ;
        port = if health.kind == "exec" then null else health.port;
        path = if health.kind == "http" then health.path else null;
        command = if health.kind == "exec" then health.command else null;
        intervalSeconds = health.interval;
        timeoutSeconds = health.timeout;
        startTimeoutSeconds = health.startTimeout;
      };

  # What only a container of this stack has.
  own = service: value: if service.external == null then value else null;

  # The keys of the .env, with where they come from.
  keys = lib.mergeAttrsList (map (section: section.keys) cfg.sections);
  changeable = lib.filterAttrs (_: key: key ? changeable) keys;

  toPath = package: if package == null then null else "${package}";

  entry = name: service: {
    unit = own service "podman-aistack-${name}.service";
    container = own service "aistack-${name}";
    external = if service.external == null then null else { inherit (service.external) host port; };
    image = own service {
      ref = service.image;
      archive = toPath service.imageFile;
      stream = toPath service.imageStream;
      live = "localhost/aistack/${name}:live";
      pullTimeoutSeconds = service.pullTimeout;
    };
    port = if service.external == null then service.port else service.external.port;
    publish = map (port: {
      inherit (port)
        address
        hostPort
        containerPort
        protocol
        ;
    }) service.publish;
    inherit (service)
      dependsOn
      stackEnvironment
      secrets
      volumes
      command
      user
      devices
      extraOptions
      ;
    # One that is switched off is not there to be wanted.
    wants = lib.filter (wanted: enabled ? ${wanted}) service.wants;
    probe = probe service;
    preflight = {
      files = map (file: { inherit (file) path what; }) service.preflight.files;
      freeDisk = map (disk: { inherit (disk) path megabytes; }) service.preflight.freeDisk;
      # CDI names (nvidia.com/gpu=all) are no paths, so nobody can look for them beforehand.
      devices = lib.unique (
        service.preflight.devices
        ++ map (device: lib.head (lib.splitString ":" device)) (
          lib.filter (lib.hasPrefix "/") service.devices
        )
      );
    };
    environment = lib.mapAttrs (_: aistack.env.toValue) service.environment;
    resources = { inherit (service.resources) memory cpus pids; };
    hardening = {
      inherit (service) noNewPrivileges readOnly tmpfs;
      capDrop = service.capabilities.drop;
      capAdd = service.capabilities.add;
    };
    stopTimeoutSeconds = service.stopTimeout;
    rollbackPolicy = service.rollback.policy;
    deploy = {
      inherit (service.deploy) strategy;
      test = {
        inherit (service.deploy.test) soakSeconds;
        timeoutSeconds = service.deploy.test.timeout;
        requests = map (request: {
          inherit (request)
            method
            path
            headers
            body
            status
            contains
            ;
        }) service.deploy.test.requests;
        openapi = toPath service.deploy.test.openapi;
      };
    };
  };
in
{
  options.services.aistack.manifest = lib.mkOption {
    type = lib.types.attrs;
    internal = true;
    readOnly = true;
    description = "Contents of stack.json, which the units are rendered from too.";
  };

  config = lib.mkIf cfg.enable {
    services.aistack.manifest = {
      schemaVersion = 1;
      inherit (cfg) stateDir;
      runtimeDir = "/run/aistack";
      envFile = "/etc/aistack/.env";
      network = {
        inherit (cfg.network)
          name
          subnet
          gateway
          interface
          ;
        dns = true;
      };
      startup = { inherit (cfg.startup) dependencyCheck timeoutSeconds; };
      selfHealing = {
        inherit (cfg.selfHealing)
          enable
          maxRestarts
          windowSeconds
          backoffSeconds
          ;
      };
      secretRotation = { inherit (cfg.secretRotation) enable; };
      rollback = { inherit (cfg.rollback) policy retain probationSeconds; };
      environment = lib.mergeAttrsList (map (section: section.values) cfg.sections);
      environmentOptions = lib.mapAttrs (_: key: key.option) keys;
      overridable = lib.mapAttrs (_: key: {
        type = builtins.typeOf key.value;
        min = key.changeable.min or null;
        max = key.changeable.max or null;
        inherit (key) option;
        # One option, one value: all of its keys.
        keys = lib.filter (other: keys.${other}.option == key.option) (lib.attrNames changeable);
      }) changeable;
      # toString, not interpolation: that would copy a literal path into the store.
      secrets = lib.mapAttrs (_: secret: {
        file = toString secret.file;
        inherit (secret) as;
      }) cfg.secrets;
      services = lib.mapAttrs entry enabled;
    };

    environment.etc."aistack/stack.json".text = aistack.json.pretty cfg.manifest;
  };
}
