"""What a service runs with against what is declared and overridden, for status, releases and env."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from aistack.hooks import runtime
from aistack.hooks.overrides import differences, in_words
from aistack.hooks.releases import BAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.overrides import Difference
    from aistack.hooks.releases import Release


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """Keys whose values differ, in words and for --json, and what to do."""

    words: str
    hint: str
    data: Sequence[dict[str, Any]]


def data(manifest: Manifest, found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Return differences for --json."""
    return [
        {"key": key, "runs": runs, "should": should, "overridden": key in manifest.overrides}
        for key, runs, should in found
    ]


def of(
    manifest: Manifest, service: Service, release: Release | None, declared: Release | None, *, runs: bool
) -> Drift | None:
    """Compare a release's environment with what is declared and overridden; None where there is nothing to say.

    One that does not run (`runs`) takes the new environment at its next start, unless that is known to be bad.
    """
    if release is None:
        return None
    should = runtime.public_environment(manifest, service)
    found = differences(release.environment, should)
    bad = declared is not None and declared.state == BAD and declared.environment == should
    if not found or not (runs or bad):
        return None
    overridden = [key for key, _, _ in found if key in manifest.overrides]
    if declared is None or not bad:
        hint = f"systemctl restart {service.unit}"
    elif overridden:
        # Another start would not try the bad release again: another value, or none, makes another one.
        hint = f"aistack env unset {' '.join(overridden)}"
    else:
        hint = f"aistack releases {service.name} --log {declared.id}"
    return Drift(
        words=in_words(manifest, release.environment, should),
        hint=hint,
        data=data(manifest, found),
    )
