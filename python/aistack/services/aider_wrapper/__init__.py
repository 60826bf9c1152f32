"""aider-wrapper: the real aider behind HTTP, one synchronous call for one message (`POST /api/execute`)."""
