"""PostgreSQL's image gives its role a password when it makes the database, and never again: here it follows the secret.

The change goes through the server's own socket, inside its container, which the official image trusts. What is sent is
the verifier that PostgreSQL would store (RFC 5803), by standard input: the password itself is on no command line, in no
statement and in no log.
"""

from __future__ import annotations

import os

from aistack.hooks import probe, runtime
from aistack.hooks.errors import HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aistack.hooks.manifest import Service

_ITERATIONS = 4096  # as PostgreSQL's own scram_iterations
_TIMEOUT = 20.0  # seconds


def keeps(service: Service, key: str) -> bool:
    """Whether `service` is a PostgreSQL of this stack whose role has the secret `key` for a password."""
    asked = service.probe
    return not service.external and asked is not None and (asked.kind, asked.secret) == ("postgres", key)


def said(service: Service, key: str) -> str:
    """The line for the journal when the password was changed."""
    role = service.probe.user if service.probe is not None else ""
    return f"{service.name}: role {role} has the password of the secret {key} now"


def set_password(service: Service, password: str) -> str | None:
    """Give the probe's role this password; returns why that cannot be, with what to do, or None."""
    asked = service.probe
    if asked is None:
        return "it has no probe, which would say which role"
    role = asked.user or "postgres"
    command = ["podman", "exec", "--interactive", service.container, "psql", "--no-psqlrc", "--no-password", "--quiet"]
    command += ["--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse", f"--username={role}"]
    command += [f"--dbname={asked.database or role}", f"--port={asked.port or service.port}"]
    name = '"' + role.replace('"', '""') + '"'
    by_hand = f"podman exec -it {service.container} psql -U {role} {asked.database or role}, then \\password"
    reader, writer = os.pipe()
    try:
        # Far less than what a pipe holds, so that nobody needs to read yet.
        with os.fdopen(writer, "w", encoding="ascii" if name.isascii() else "utf-8") as statement:
            statement.write(f"ALTER ROLE {name} PASSWORD '{verifier(password, os.urandom(16))}';\n")
        code, out, errors = runtime.run(command, _TIMEOUT, reader)
    except HookError as error:
        return f"{error}; by hand: {by_hand}"
    finally:
        os.close(reader)
    if code == 0:
        return None
    words = printable((errors.strip() or out.strip()).rpartition("\n")[2], 200)
    return f"psql in {service.container} says: {words}; put the old value back, or by hand: {by_hand}"


def verifier(password: str, salt: bytes) -> str:
    """What PostgreSQL stores of a password: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey."""
    import hashlib
    import hmac
    from base64 import b64encode

    salted = hashlib.pbkdf2_hmac("sha256", probe.scram_password(password), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{words[0]}${words[1]}:{words[2]}"
