"""What runs: services and their answers, the network and its names, published ports, the images of containers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aistack.cli import status
from aistack.doctor.host import ASK_TIMEOUT, Finding, fail, fine, warn
from aistack.hooks import network as networks
from aistack.hooks import ports as holders
from aistack.hooks import probe, runtime
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.doctor.host import Host
    from aistack.hooks.manifest import Service

PAUSE = 1.0  # seconds between two questions to a service that did not answer well

_LIMIT_HIT = "start-limit-hit"


def services(host: Host) -> Iterator[Finding]:
    """Say of each service whether it serves, and ask those that should answer."""
    if host.is_stopped():
        return
    rows = {row.service: row for row in host.rows()}
    for service, answer in _answers(host, [one for one in host.containers if rows[one.name].state == status.READY]):
        restart = f"systemctl restart {service.unit}"
        if isinstance(answer, HookError):
            yield fail("services", f"{service.name} cannot be asked: {answer}", "aistack preflight")
        elif not answer.ok:
            yield fail("services", f"{service.name} is up and does not answer: {answer.kind}: {answer.detail}", restart)
        else:
            yield fine("services", f"{service.name} is ready" + ("" if service.probe is None else " and answers"))
    for row in rows.values():
        if (found := _row(host, row)) is not None:
            yield found


def _answers(host: Host, wanted: list[Service]) -> list[tuple[Service, probe.Result | HookError]]:
    """Ask services, all at once; each question is bounded by the probe's own timeout.

    As often as its health checks would before they act: one answer that is late is no fault.
    """
    from concurrent.futures import ThreadPoolExecutor

    def ask(service: Service) -> probe.Result | HookError:
        tries = service.probe.failures if service.probe is not None else 1
        try:
            password = runtime.probe_password(host.manifest, service)
            result = probe.ask(host.manifest, service, password)
            for _ in range(tries - 1):
                if result.ok or result.permanent:
                    break
                time.sleep(PAUSE)
                result = probe.ask(host.manifest, service, password)
        except HookError as error:
            return error
        return result

    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        return list(zip(wanted, pool.map(ask, wanted), strict=True))


def _row(host: Host, row: status.Row) -> Finding | None:
    """A finding for a service that does not serve; external ones have been asked already."""
    what = f"{row.service} is {row.state}" + (f": {row.reason}" if row.reason else "")
    if row.external is not None:
        where = f"{row.external['host']}:{row.external['port']}"
        if row.state == status.READY:
            return fine("services", f"{row.service} answers at {where}")
        return fail(
            "services", f"{row.service} at {where}: {row.reason}", row.hint or f"aistack preflight {row.service}"
        )
    if row.state == status.READY:
        return None
    unit = host.manifest.services[row.service].unit
    again = f"systemctl reset-failed {unit}; systemctl start {unit}"
    if row.state == status.STOPPED:
        return fail("services", what, f"systemctl start {unit}")
    if row.state in status.NOT_YET:
        return warn("services", what, row.hint or f"journalctl -u {unit} -n 50")
    if row.state == status.DEGRADED:
        return fail("services", what, f"systemctl restart {unit}")
    if row.unit is not None and row.unit["result"] == _LIMIT_HIT:
        what += " (it hit its start limit)"
    if row.unit is not None and row.unit["load"] == "not-found":
        return fail("services", what, row.hint or "bundle/install")
    return fail("services", what, again)


def network(host: Host) -> Iterator[Finding]:
    """Look at the network, its bridge, its rules, its name server and every name, as `aistack network check` does."""
    stopped = host.is_stopped()
    # A stack that is stopped has no network: its unit removes it.
    found = [fault for fault in networks.check(host.manifest) if not (stopped and fault.kind == networks.MISSING)]
    for fault in found:
        yield fail("network", fault.line(), "aistack network repair")
    if not found and not stopped:
        yield fine(
            "network", f"{host.manifest.network}: bridge, rules, and the names of {len(host.running())} services"
        )


def ports(host: Host) -> Iterator[Finding]:
    """Look who holds the host's ports that services publish."""
    running = {service.name for service in host.running()}
    for service in host.containers:
        for port in service.publish:
            address, number, protocol = port["address"].strip("[]"), port["hostPort"], port["protocol"]
            where = f"{port['address']}:{number}/{protocol}"
            who = holders.holder(address, number, protocol)
            if who is not None and who.container != service.container:
                yield fail("ports", f"{where} of {service.name} is held by {who}", f"ss -lpn 'sport = :{number}'")
            elif service.name in running and who is None:
                yield fail("ports", f"nobody listens at {where} of {service.name}", f"systemctl restart {service.unit}")
            elif who is not None:
                yield fine("ports", f"{where} is held by {service.name}")


def containers(host: Host) -> Iterator[Finding]:
    """Compare the image of each running container with that of the release it was started as."""
    running = host.running()
    if not running:
        return
    names = {service.container: service for service in running}
    asked = ["podman", "container", "inspect", "--format", "{{.Name}}\t{{.Image}}", *names]
    # One that is missing makes it fail; the others are there all the same.
    _, out, _ = runtime.run(asked, ASK_TIMEOUT)
    images = dict(line.split("\t", 1) for line in out.splitlines() if "\t" in line)
    good = 0
    for name, service in names.items():
        release = host.ran(service)
        image = images.get(name, "").removeprefix("sha256:")
        restart = f"systemctl restart {service.unit}"
        if not image:
            yield fail("containers", f"{service.unit} is active, and podman knows no container {name}", restart)
        elif release is not None and image != release.image_id:
            yield fail("containers", f"{service.name} runs image {image[:12]}, and not that of {release}", restart)
        else:
            good += 1
    if good:
        yield fine("containers", f"{good} of {len(running)} run the image of their release")


def clock(host: Host) -> Iterator[Finding]:
    """Look for what was written in the future: the clock was wrong then, or is now."""
    limit = time.time() + 60
    ahead = [release for known in host.releases().values() for release in known.history if release.created > limit]
    for release in ahead:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(release.created))
        yield warn("clock", f"{release} of {release.service} was made in the future ({when})", "timedatectl")
    if not ahead:
        yield fine("clock", "no release was made in the future")
