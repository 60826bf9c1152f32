"""The stack's own services, each run as `python -m aistack.services.<name>`.

They need the packages of the optional group `services`; the hooks and the command line never import this.
"""
