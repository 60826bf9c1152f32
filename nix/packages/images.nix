# The images of the reference stack as scripts that write them to standard output, so that no image is
# in the store twice: `$(nix build --print-out-paths .#images.redis) | podman load`.
#
# The same entry points as in images/<name>, around Nixpkgs' packages; qdrant and llama.cpp are the
# real ones here.
{
  lib,
  callPackage,
  coreutils,
  dockerTools,
  gitMinimal,
  gnugrep,
  gnused,
  linkFarm,
  llama-cpp,
  postgresql_17,
  python3,
  python312,
  qdrant,
  redis,
  runCommand,
}:
let
  image =
    name:
    {
      # What the image holds, beside files from images/<name>.
      contents,
      # Path in the image -> file of images/<name>.
      files ? { },
      user,
      port,
      entrypoint,
      environment ? [ ],
      config ? { },
    }:
    dockerTools.streamLayeredImage {
      name = "localhost/aistack-images/${name}";
      tag = "1";
      contents =
        shell
        ++ contents
        ++ lib.optional (files != { }) (
          runCommand "aistack-image-${name}-files" { } (
            lib.concatStrings (
              lib.mapAttrsToList (target: file: ''
                install -D -m ${if lib.hasPrefix "/etc/" target then "0644" else "0755"} ${
                  ../../images + "/${name}/${file}"
                } $out${target}
              '') files
            )
          )
        );
      # The root is read-only at run time; podman mounts over directories, it does not make them.
      extraCommands = ''
        mkdir -p -m 1777 tmp
        mkdir -p run var/tmp
      '';
      config = {
        User = user;
        ExposedPorts."${toString port}/tcp" = { };
        Entrypoint = entrypoint;
        Env = [ "PATH=/usr/local/bin:/usr/bin:/bin" ] ++ environment;
      }
      // config;
    };

  # For the entry points, and for whoever looks into a container or makes a variant of an image.
  shell = [
    coreutils
    dockerTools.binSh
    dockerTools.usrBinEnv
    gnused
  ];

  images = {
    postgres = image "postgres" {
      contents = [ (postgresql_17.withPackages (extensions: [ extensions.pgvector ])) ];
      files = {
        "/usr/local/bin/entrypoint" = "entrypoint";
        "/etc/passwd" = "passwd";
        "/etc/group" = "group";
      };
      user = "999:999";
      port = 5432;
      entrypoint = [ "/usr/local/bin/entrypoint" ];
      environment = [ "PGDATA=/var/lib/postgresql/data" ];
      # The fast shutdown: SIGTERM would wait for every client to leave.
      config.StopSignal = "SIGINT";
    };

    redis = image "redis" {
      contents = [ redis ];
      files = {
        "/usr/local/bin/entrypoint" = "entrypoint";
        "/etc/passwd" = "passwd";
        "/etc/group" = "group";
      };
      user = "999:999";
      port = 6379;
      entrypoint = [ "/usr/local/bin/entrypoint" ];
      config.WorkingDir = "/data";
    };

    qdrant = image "qdrant" {
      contents = [ qdrant ];
      user = "1000:1000";
      port = 6333;
      entrypoint = [ "/bin/qdrant" ];
      # The defaults are relative to the working directory, which is not writable.
      environment = [
        "QDRANT__STORAGE__STORAGE_PATH=/qdrant/storage"
        "QDRANT__STORAGE__SNAPSHOTS_PATH=/qdrant/snapshots"
      ];
      config.WorkingDir = "/qdrant";
    };

    llama-cpp = image "llama-cpp" {
      contents = [ llama-cpp ];
      user = "1000:1000";
      port = 8080;
      entrypoint = [ "/bin/llama-server" ];
    };

    app = image "app" {
      contents = [
        (python3.withPackages (packages: [
          packages.psycopg
          packages.redis
        ]))
      ];
      files."/app/app.py" = "app.py";
      user = "1000:1000";
      port = 8000;
      entrypoint = [ "/app/app.py" ];
    };

    aider-wrapper = image "aider-wrapper" {
      contents = forTasks;
      user = "1000:1000";
      port = 8099;
      # aider does not run on a newer Python.
      entrypoint = service python312 "aider_wrapper" (packages: [ packages.aider-chat ]);
    };

    ralph-wiggum = image "ralph-wiggum" {
      contents = forTasks;
      user = "1000:1000";
      port = 8098;
      entrypoint = service python3 "ralph_wiggum" (_: [ ]);
    };

    # It plays the model in tests and in the demonstration.
    scripted-endpoint = image "scripted-endpoint" {
      contents = [ python3 ];
      files."/usr/local/bin/scripted-endpoint" = "scripted_endpoint.py";
      user = "1000:1000";
      port = 8000;
      entrypoint = [ "/usr/local/bin/scripted-endpoint" ];
    };
  };

  # What the commands of a task may count on; not what the service itself imports.
  forTasks = [
    gitMinimal
    gnugrep
    (python3.withPackages (packages: [ packages.pytest ]))
  ];

  # The command line of one of the stack's own services.
  service =
    python: module: more:
    let
      environment = python.withPackages (
        packages:
        [
          (packages.toPythonModule (callPackage ./aistack.nix { python3Packages = packages; }))
          packages.fastapi
          packages.httpx
          packages.opentelemetry-exporter-otlp-proto-http
          packages.opentelemetry-sdk
          packages.prometheus-client
          packages.pydantic
          packages.pydantic-settings
          packages.uvicorn
        ]
        ++ more packages
      );
    in
    [
      "${environment}/bin/python3"
      "-m"
      "aistack.services.${module}"
    ];

  # A llama model of 300 KB with random weights: real in everything but sense.
  tiny-model = runCommand "tiny.gguf" { nativeBuildInputs = [ python3 ]; } ''
    python3 -I ${../../images/llama-cpp/tiny_model.py} $out
  '';
in
(linkFarm "aistack-images" (images // { "tiny.gguf" = tiny-model; })).overrideAttrs {
  passthru = images // {
    inherit images tiny-model;
  };
}
