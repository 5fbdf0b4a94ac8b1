-- Version 1. Applied in one transaction with the note that it happened (user_version).

-- A lane's row is the only place where its numbers live; `last_seq` only ever rises, so a
-- chunk id is never used twice, whatever was deleted.
CREATE TABLE lanes (
    id         INTEGER PRIMARY KEY,
    kind       TEXT NOT NULL,
    identifier TEXT NOT NULL,
    priority   TEXT NOT NULL,
    last_seq   INTEGER NOT NULL DEFAULT 0,
    pending    INTEGER NOT NULL DEFAULT 0,  -- records, those aside included
    aside      INTEGER NOT NULL DEFAULT 0,  -- records in the table aside
    bytes      INTEGER NOT NULL DEFAULT 0,  -- of the pending records
    UNIQUE (kind, identifier, priority)
);

-- Records of one lane that one commit brought, never updated: what is settled piecemeal is
-- noted in `gone`. id = lane << 40 | seq, so a lane is one range and needs no index.
CREATE TABLE chunks (
    id          INTEGER PRIMARY KEY,
    n           INTEGER NOT NULL,
    accepted_ms INTEGER NOT NULL,
    crc         INTEGER NOT NULL,  -- CRC-32 of runs, ends and body
    runs        BLOB NOT NULL,     -- MessagePack: how the times of the records were made
    ends        BLOB NOT NULL,     -- where each record ends in the body: 32 bits each, little-endian
    body        BLOB NOT NULL      -- the records' bytes, joined by commas
);

-- Bit i set: record i of the chunk has left it (delivered, dead, aside or discarded).
CREATE TABLE gone (
    chunk INTEGER PRIMARY KEY,
    bits  BLOB NOT NULL
);

-- Single records that wait without holding up their lane.
CREATE TABLE aside (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    lane        INTEGER NOT NULL,
    order_key   BLOB NOT NULL,
    reason      TEXT NOT NULL,     -- ahead | parked | denied | busy
    due_ms      INTEGER,           -- ahead: its time, milliseconds since 1970
    accepted_ms INTEGER NOT NULL,
    crc         INTEGER NOT NULL,
    runs        BLOB NOT NULL,
    body        BLOB NOT NULL
);
CREATE INDEX aside_by_key ON aside (lane, order_key, id);
CREATE INDEX aside_by_due ON aside (lane, due_ms);
CREATE INDEX aside_by_age ON aside (lane, accepted_ms);

CREATE TABLE dead (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    lane        INTEGER NOT NULL,
    order_key   BLOB NOT NULL,
    reason      TEXT NOT NULL,
    status      INTEGER,           -- HTTP status of the refusal
    answer      TEXT NOT NULL,     -- what the upstream said
    died_ms     INTEGER NOT NULL,
    superseded  INTEGER NOT NULL DEFAULT 0,
    accepted_ms INTEGER NOT NULL,
    crc         INTEGER NOT NULL,
    runs        BLOB NOT NULL,
    body        BLOB NOT NULL
);
CREATE INDEX dead_by_key ON dead (lane, order_key);

CREATE TABLE ledger (
    name TEXT PRIMARY KEY,
    n    INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO ledger (name, n) VALUES
    ('accepted', 0), ('delivered', 0), ('pending', 0), ('dead', 0),
    ('discarded', 0), ('superseded', 0), ('lost', 0), ('lost_at_most', 0);

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value ANY
) WITHOUT ROWID;

-- The true time of each boot: wall time = time since boot + offset, for stamps made at
-- `from_boot_ms` or later. Rows are only ever added, so a corrected time never changes.
CREATE TABLE clock (
    boot         TEXT NOT NULL,
    from_boot_ms INTEGER NOT NULL,
    offset_ms    INTEGER NOT NULL,
    tolerance_ms INTEGER NOT NULL,  -- smaller errors are left as they are
    PRIMARY KEY (boot, from_boot_ms)
) WITHOUT ROWID;

-- How far the boot clock of another machine runs ahead of ours, for stamps it made at
-- `from_boot_ms` (by its own boot clock) or later.
CREATE TABLE boots (
    boot         TEXT NOT NULL,
    from_boot_ms INTEGER NOT NULL,
    own_boot     TEXT NOT NULL,
    ahead_ms     INTEGER NOT NULL,
    PRIMARY KEY (boot, from_boot_ms)
) WITHOUT ROWID;
