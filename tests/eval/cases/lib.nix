# nix/lib: the pure functions behind the module.
{ lib, aistack, ... }:
let
  inherit (aistack)
    graph
    image
    publish
    env
    json
    ;
in
{
  "no edges, no cycle" = {
    expr = graph.cycle { };
    expected = null;
  };
  "a diamond is no cycle" = {
    expr = graph.cycle {
      a = [
        "b"
        "c"
      ];
      b = [ "d" ];
      c = [ "d" ];
      d = [ ];
    };
    expected = null;
  };
  "a cycle behind a diamond is found" = {
    expr = graph.cycle {
      a = [
        "b"
        "c"
      ];
      b = [ "d" ];
      c = [ "d" ];
      d = [ "c" ];
    };
    expected = [
      "d"
      "c"
      "d"
    ];
  };
  "a dependency nobody declared ends no search" = {
    expr = graph.cycle { a = [ "nobody" ]; };
    expected = null;
  };
  "a chain of a thousand is walked" = {
    expr = graph.cycle (
      lib.listToAttrs (
        map (n: lib.nameValuePair "s${toString n}" [ "s${toString (n + 1)}" ]) (lib.range 1 1000)
      )
    );
    expected = null;
  };

  "tags are told from ports and digests" = {
    expr = map image.tag [
      "app"
      "app:1"
      "registry:5000/app"
      "registry:5000/app:1.2"
      "app:1@sha256:00"
    ];
    expected = [
      null
      "1"
      null
      "1.2"
      "1"
    ];
  };
  "what floats" = {
    expr = map image.isFloating [
      "app"
      "app:latest"
      "registry:5000/app"
      "app:1"
      "app@sha256:00"
      "app:latest@sha256:00"
    ];
    expected = [
      true
      true
      true
      false
      false
      false
    ];
  };

  "every way to write a published port" = {
    expr = map publish.parse [
      8080
      "8080"
      "8080:80"
      "10.0.0.5:8080:80"
      "[::1]:8080:80/udp"
      "8080/udp"
    ];
    expected = [
      { hostPort = 8080; }
      { hostPort = 8080; }
      {
        hostPort = 8080;
        containerPort = 80;
      }
      {
        address = "10.0.0.5";
        hostPort = 8080;
        containerPort = 80;
      }
      {
        address = "[::1]";
        hostPort = 8080;
        containerPort = 80;
        protocol = "udp";
      }
      {
        hostPort = 8080;
        protocol = "udp";
      }
    ];
  };
  "what is no published port" = {
    expr = map publish.isShort [
      ""
      "http"
      "8080:"
      ":80"
      "host:8080:80"
      "8080:80:90:100"
      "8080/sctp"
    ];
    expected = lib.genList (_: false) 7;
  };

  "the prefix of a service's keys" = {
    expr = env.prefix "hybrid-coordinator";
    expected = "HYBRID_COORDINATOR";
  };
  "keys that look like secrets" = {
    expr = lib.filter (key: !env.looksSecret key) [
      "POSTGRES_PASSWORD"
      "PGPASSWORD"
      "DB_PASSWD"
      "CLIENT_SECRET"
      "SECRET_KEY"
      "API_KEY"
      "OPENAI_API_KEY"
      "APIKEY"
      "GITHUB_TOKEN"
      "TOKEN"
      "AWS_CREDENTIALS"
      "SSH_PASSPHRASE"
      "TLS_PRIVATE_KEY"
    ];
    expected = [ ];
  };
  "keys that do not" = {
    expr = lib.filter env.looksSecret [
      "MAX_TOKENS"
      "TOKENIZER"
      "LOG_LEVEL"
      "PARTITION_KEY"
      "KEYBOARD"
      "POSTGRES_PASSWORD_FILE"
      "SECRETS_DIR"
      "MONKEY"
    ];
    expected = [ ];
  };
  "keys that shells keep for themselves" = {
    expr = lib.filter (key: !env.isShellOwn key) [
      "BASH_ENV"
      "ENV"
      "EPOCHSECONDS"
      "EUID"
      "GROUPS"
      "IFS"
      "LD_PRELOAD"
      "LINENO"
      "OPTIND"
      "PATH"
      "PPID"
      "RANDOM"
      "SECONDS"
      "SHLVL"
      "SRANDOM"
      "UID"
    ];
    expected = [ ];
  };
  "keys that they do not" = {
    expr = lib.filter env.isShellOwn [
      "APP_ENV"
      "BUILD_ID"
      "GUID"
      "LDAP_HOST"
      "MODEL_PATH"
      "TIMEOUT_SECONDS"
      "UID_RANGE"
    ];
    expected = [ ];
  };

  "the grammar of values takes what a URL needs, and nothing a shell would touch" = {
    expr = map env.isValue [
      ""
      "http://h:1/p?x"
      "http://h:1/p%20q,r=s+t@u-v_w.x"
      "a b"
      "a'b"
      "a\"b"
      "$a"
      "a\\b"
      "a#b"
      "a;b"
      "a\nb"
      "ä"
    ];
    expected = [
      true
      false
      true
    ]
    ++ lib.genList (_: false) 9;
  };
  "a section without keys is left out" = {
    expr = env.render [
      {
        title = "nothing";
        values = { };
      }
      {
        title = "some";
        values = {
          B = "2";
          A = "1";
        };
      }
    ];
    expected = ''
      # Generated from services.aistack by Nix; edits are overwritten. It holds no secret.

      # some
      A=1
      B=2
    '';
  };

  "pretty JSON says the same as JSON" =
    let
      value = {
        a = [
          1
          { b = null; }
          [ ]
        ];
        "quoted \"key\"" = {
          text = "line\nbreak";
          empty = { };
          yes = true;
          half = 0.5;
        };
      };
    in
    {
      expr = builtins.fromJSON (json.pretty value);
      expected = value;
    };
}
