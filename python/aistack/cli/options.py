"""Options and arguments that several commands share, and what completes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from aistack.errors import printable
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    from aistack.hooks.manifest import Service


def _declared(incomplete: str) -> list[Service]:
    from aistack.hooks.manifest import load

    try:
        services = load().services
    except HookError:
        # Completion has nowhere to complain: without a manifest there is nothing to offer.
        return []
    # A name with a control character or a blank would reach the shell's own parser: leave it out.
    return [
        service for name, service in services.items() if name.startswith(incomplete) and name.replace("-", "").isalnum()
    ]


def complete_service(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the services the manifest declares, with what they run."""
    del ctx, param
    return [
        CompletionItem(service.name, help=printable(service.image_ref) or "external")
        for service in _declared(incomplete)
    ]


def complete_container_service(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the services that are containers of this stack."""
    del ctx, param
    return [
        CompletionItem(service.name, help=printable(service.image_ref))
        for service in _declared(incomplete)
        if not service.external
    ]


services_argument = click.argument("services", metavar="[SVC]...", nargs=-1, shell_complete=complete_service)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
