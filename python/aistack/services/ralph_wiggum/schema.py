"""The tables of Ralph's database."""

from __future__ import annotations

VERSION = 1

TABLES = """
CREATE TABLE task (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  idempotency_key TEXT UNIQUE,
  request_hash TEXT NOT NULL,
  prompt TEXT NOT NULL,
  words TEXT NOT NULL,
  backend TEXT NOT NULL,
  complexity TEXT NOT NULL,
  workspace TEXT NOT NULL,
  priority INTEGER NOT NULL,
  expect_changes INTEGER NOT NULL,
  verify TEXT NOT NULL,
  context TEXT NOT NULL,
  iteration_limit INTEGER NOT NULL CHECK (iteration_limit > 0),
  limit_steps TEXT NOT NULL,
  max_tokens INTEGER,
  max_seconds REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN
    ('queued', 'awaiting_approval', 'running', 'waiting', 'completed', 'exhausted', 'failed', 'stopped', 'rejected')),
  reason TEXT,
  detail TEXT,
  created REAL NOT NULL,
  updated REAL NOT NULL,
  started REAL,
  finished REAL,
  approval_expires REAL,
  retry_at REAL,
  active_seconds REAL NOT NULL DEFAULT 0,
  active_since REAL,
  iterations INTEGER NOT NULL DEFAULT 0 CHECK (iterations <= iteration_limit),
  uncounted INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  tokens INTEGER NOT NULL DEFAULT 0,
  fingerprint TEXT,
  same_error INTEGER NOT NULL DEFAULT 0,
  no_progress INTEGER NOT NULL DEFAULT 0,
  feedback TEXT,
  base_tree TEXT
);
CREATE INDEX task_by_state ON task (state, priority DESC, seq);
CREATE INDEX task_by_finish ON task (finished) WHERE finished IS NOT NULL;
CREATE TABLE iteration (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  task INTEGER NOT NULL REFERENCES task (seq),
  number INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  key TEXT NOT NULL UNIQUE,
  phase TEXT NOT NULL CHECK (phase IN ('open', 'answered', 'closed')),
  checkpoint TEXT,
  tree_before TEXT,
  tree_after TEXT,
  opened REAL NOT NULL,
  closed REAL,
  outcome TEXT,
  counted INTEGER NOT NULL DEFAULT 0,
  failure_class TEXT,
  exit_code INTEGER,
  error_kind TEXT,
  error TEXT,
  output TEXT NOT NULL DEFAULT '',
  files_modified TEXT NOT NULL DEFAULT '[]',
  git_commits TEXT NOT NULL DEFAULT '[]',
  tokens INTEGER NOT NULL DEFAULT 0,
  backend_seconds REAL,
  verify TEXT NOT NULL DEFAULT '[]',
  reply TEXT,
  UNIQUE (task, number, attempt)
);
-- A number counts once, and a task has one call under way: what the code promises, the database enforces.
CREATE UNIQUE INDEX iteration_counted ON iteration (task, number) WHERE counted = 1;
CREATE UNIQUE INDEX iteration_open ON iteration (task) WHERE phase != 'closed';
CREATE TABLE event (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  task INTEGER NOT NULL REFERENCES task (seq),
  at REAL NOT NULL,
  name TEXT NOT NULL,
  data TEXT NOT NULL
);
CREATE INDEX event_by_task ON event (task, id);
CREATE TABLE decision (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  task INTEGER NOT NULL REFERENCES task (seq),
  at REAL NOT NULL,
  action TEXT NOT NULL,
  by_whom TEXT NOT NULL,
  reason TEXT NOT NULL
);
CREATE INDEX decision_by_task ON decision (task, id);
CREATE TABLE setting (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  document TEXT NOT NULL,
  declared TEXT NOT NULL,
  updated REAL
);
CREATE TABLE exported (id INTEGER PRIMARY KEY CHECK (id = 1), event INTEGER NOT NULL);
"""
