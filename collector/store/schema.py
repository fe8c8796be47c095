"""The tables of the index, and the steps from one version of them to the next.

A change of the tables is a step at the end of STEPS; none that was ever released is edited. A new
index takes all of them as an old one does, so that both are the same. Where a step adds a column
that only the records tell, it says so by REREAD: then each row is made anew from its record, by
retention's process, for an agent that starts has no minutes to wait for 100,000 of them.
"""

from __future__ import annotations

import sqlite3

OLDEST = 3  # the first version that has steps; what is older is rebuilt from the folders

_DEATHS = """
CREATE TABLE deaths (
  id TEXT PRIMARY KEY,
  time INTEGER NOT NULL,  -- microseconds since 1970
  cause TEXT NOT NULL,
  signal INTEGER,
  comm TEXT NOT NULL,
  exe TEXT,
  unit TEXT,
  closed INTEGER NOT NULL,  -- 0: its writer has not closed it, or was killed before it did
  inode INTEGER NOT NULL,  -- inode and mtime_ns of the record.json that was read; 0: none yet
  mtime INTEGER NOT NULL,
  owner TEXT NOT NULL,
  held INTEGER NOT NULL  -- bytes that its core has on disk
) WITHOUT ROWID;
CREATE INDEX deaths_by_time ON deaths (time);
CREATE INDEX deaths_open ON deaths (closed) WHERE NOT closed;
CREATE INDEX deaths_held ON deaths (time) WHERE held > 0 AND closed;
"""

# What is known of the index as a whole: `boot`, the boot in which it was last compared with all
# folders. Since then each record was in the index before it had a folder.
_STATE = "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"

LATER = -1  # as inode: what the row says is right, but for columns that it did not have
REREAD = f"UPDATE deaths SET inode = {LATER};\n"

# For retention: what a record takes on disk beside its core, of what service and what kind of crash
# it is (`room`), whether somebody keeps it. Until a row is made anew it says what is usual.
_RETENTION = f"""
ALTER TABLE deaths ADD COLUMN other INTEGER NOT NULL DEFAULT 8192;
ALTER TABLE deaths ADD COLUMN service TEXT NOT NULL DEFAULT '';
ALTER TABLE deaths ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE deaths ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
CREATE INDEX deaths_by_service ON deaths (owner, service, time);
CREATE INDEX deaths_by_kind ON deaths (kind, time);
CREATE INDEX deaths_cores_by_kind ON deaths (kind, time) WHERE held > 0;
{REREAD}"""

_SIGNATURES = f"""
ALTER TABLE deaths ADD COLUMN deaths INTEGER NOT NULL DEFAULT 1;  -- that the record stands for
ALTER TABLE deaths ADD COLUMN signature TEXT;
ALTER TABLE deaths ADD COLUMN rules TEXT;  -- algorithm and rules that made it
ALTER TABLE deaths ADD COLUMN build TEXT;  -- build-id of the executable
ALTER TABLE deaths ADD COLUMN facets TEXT;  -- JSON: what deaths are compared by
CREATE TABLE signatures (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX deaths_by_signature ON deaths (signature, exe, build, rules, time, deaths)
  WHERE signature IS NOT NULL;
{REREAD}"""

# For lists of 100,000 records: what a filter looks at, in the order in which it is shown. And for
# what is over-represented among the deaths of a signature: how many have each value of each facet,
# and how many *episodes*, which are deaths with the same facets in the same hour (`compare` in
# `signature`). Triggers keep the numbers, whoever changes a row.
_HOUR = 3_600_000_000  # microseconds
_SAME_EPISODE = f"""EXISTS (
    SELECT 1 FROM deaths WHERE signature = {{0}}.signature AND time / {_HOUR} = {{0}}.time / {_HOUR}
    AND facets = {{0}}.facets AND id != {{0}}.id)"""
_COUNT = f"""
  INSERT INTO tallies
    SELECT key, value, new.signature, 1, NOT {_SAME_EPISODE.format("new")}
    FROM json_each(new.facets) WHERE TRUE
    ON CONFLICT DO UPDATE SET deaths = deaths + 1, episodes = episodes + excluded.episodes;"""
_ITS = """signature = old.signature
    AND (facet, value) IN (SELECT key, value FROM json_each(old.facets))"""
_UNCOUNT = f"""
  UPDATE tallies SET deaths = deaths - 1, episodes = episodes - NOT {_SAME_EPISODE.format("old")}
    WHERE {_ITS};
  DELETE FROM tallies WHERE deaths <= 0 AND {_ITS};"""
_CHANGED = """(old.signature, old.facets, old.time) IS NOT (new.signature, new.facets, new.time)"""
_TALLIES = f"""
DROP INDEX deaths_by_time;
CREATE INDEX deaths_by_time
  ON deaths (time, id, cause, signal, comm, exe, unit, closed, kept, signature, deaths);
CREATE INDEX deaths_of_storms ON deaths (mtime) WHERE deaths > 1;
CREATE INDEX deaths_by_hour ON deaths (signature, time / {_HOUR}) WHERE signature IS NOT NULL;
CREATE TABLE tallies (
  facet TEXT NOT NULL,
  value TEXT NOT NULL,
  signature TEXT NOT NULL,
  deaths INTEGER NOT NULL,
  episodes INTEGER NOT NULL,
  PRIMARY KEY (facet, value, signature)
) WITHOUT ROWID;
INSERT INTO tallies
  SELECT key, value, signature, sum(n), count(*) FROM
    (SELECT signature, facets, count(*) AS n FROM deaths WHERE signature IS NOT NULL
     GROUP BY signature, facets, time / {_HOUR}),
    json_each(facets)
  GROUP BY key, value, signature;
CREATE TRIGGER tally_new AFTER INSERT ON deaths WHEN new.signature IS NOT NULL BEGIN{_COUNT}
END;
CREATE TRIGGER tally_gone AFTER DELETE ON deaths WHEN old.signature IS NOT NULL BEGIN{_UNCOUNT}
END;
CREATE TRIGGER tally_was AFTER UPDATE OF signature, facets, time ON deaths
  WHEN {_CHANGED} AND old.signature IS NOT NULL BEGIN{_UNCOUNT}
END;
CREATE TRIGGER tally_is AFTER UPDATE OF signature, facets, time ON deaths
  WHEN {_CHANGED} AND new.signature IS NOT NULL BEGIN{_COUNT}
END;
"""

# Of records that an older version made there were no pods: the columns are right as they are.
_PODS = """
ALTER TABLE deaths ADD COLUMN namespace TEXT;
ALTER TABLE deaths ADD COLUMN pod TEXT;
DROP INDEX deaths_by_time;  -- which has all that filters look at
CREATE INDEX deaths_by_time ON deaths
  (time, id, cause, signal, comm, exe, unit, closed, kept, signature, deaths, namespace, pod);
"""

# Whether a death is of an episode that is counted: without its facets in the index each record of a
# bug looked into all others of its hour, which took ever longer while many came.
_EPISODES = f"""
DROP INDEX deaths_by_hour;
CREATE INDEX deaths_by_hour ON deaths (signature, time / {_HOUR}, facets)
  WHERE signature IS NOT NULL;
"""

# The first leads from nothing to version OLDEST, each other one to the version after.
STEPS = (_DEATHS, _STATE, _RETENTION, _SIGNATURES, _TALLIES, _PODS, _EPISODES)
VERSION = OLDEST + len(STEPS) - 1


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring tables of this version, 0 for a new file, to the newest one: all steps, or none."""
    done = 0 if version == 0 else version - OLDEST + 1
    steps = "".join(STEPS[done:])
    with db:
        db.executescript(f"BEGIN IMMEDIATE;{steps}PRAGMA user_version = {VERSION};COMMIT;")
