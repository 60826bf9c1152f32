"""aistack: a local AI stack as podman containers under systemd.

Importing this package costs nothing: the hooks, which run on every start of every container, are
below it, so it must stay free of imports.
"""

__version__ = "0.1.0"
