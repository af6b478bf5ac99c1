-- The store that nvmuser at 43f6887 made, as its schema version 1.
PRAGMA journal_mode = WAL;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE object (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        spec TEXT NOT NULL,
        provisioned INTEGER NOT NULL DEFAULT 0,
        deleting INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
INSERT INTO "object" VALUES('controller','c','{"kind": "controller", "name": "c", "namespaces": [{"volume": "a", "nsid": 3}], "serial": "S", "cntlid": 7}',1,0);
INSERT INTO "object" VALUES('pool','p','{"kind": "pool", "name": "p", "base": "a"}',1,0);
INSERT INTO "object" VALUES('remote','r','{"kind": "remote", "name": "r", "nqn": "nqn.2026-11.org.x:y", "paths": [{"name": "127.0.0.1", "port": 1}, {"name": "::1"}]}',0,1);
INSERT INTO "object" VALUES('target','spdk','{"kind": "target", "profile": "eco", "cores": [1]}',0,0);
INSERT INTO "object" VALUES('volume','a','{"kind": "volume", "name": "a", "backend": "raid1", "members": ["b", "c"], "limits": {"iops": 1000}, "uuid": "u"}',1,0);
INSERT INTO "object" VALUES('volume','f','{"kind": "volume", "name": "f", "size": 1048576, "path": "/v/f", "owned": true}',0,0);
COMMIT;
