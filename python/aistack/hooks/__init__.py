"""What systemd runs around every container. Standard library only: it runs at every start of every container."""
