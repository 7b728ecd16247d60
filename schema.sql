-- All tables, indexes, functions and triggers of the service. VectorDB.open() applies this file in one transaction,
-- under an advisory lock, when the database does not carry it yet; applying it again changes nothing.
-- Needs PostgreSQL 14 or newer and no extension.

-- Tables made from the crash course that this project grew out of have ids unique over all collections and no versions.
-- They are set aside here, and what the last step copies into the new tables. It does so in the same run, once and for all.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('vector_collections')) AND NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = to_regclass('vector_collections') AND attname = 'epoch'
    ) THEN
        ALTER TABLE vector_collections RENAME TO vector_collections_before;
        ALTER TABLE IF EXISTS vector_documents RENAME TO vector_documents_before;
        PERFORM set_config('vector.takes_over', 'on', true);
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS vector_collections (
    collection_name TEXT COLLATE "C" PRIMARY KEY,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- NULL until the first embedding is written, which fixes it.
    dimension       INTEGER CHECK (dimension BETWEEN 1 AND 16384),
    metric          TEXT NOT NULL DEFAULT 'cosine' CHECK (metric IN ('cosine', 'euclidean', 'manhattan', 'ip')),
    metadata        JSONB NOT NULL DEFAULT '{}',
    -- Raised by every transaction that writes documents, under the row's lock: versions appear in commit order.
    version         BIGINT NOT NULL DEFAULT 0,
    -- Another value means another history: what a process has in memory is worth nothing.
    epoch           UUID NOT NULL DEFAULT gen_random_uuid(),
    -- Deletions up to this version are no longer in vector_tombstones.
    tombstone_floor BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

CREATE TABLE IF NOT EXISTS vector_documents (
    id              TEXT COLLATE "C" NOT NULL,
    collection_name TEXT COLLATE "C" NOT NULL
                    REFERENCES vector_collections ON UPDATE CASCADE ON DELETE CASCADE,
    document        TEXT,
    metadata        JSONB,
    embedding       REAL[],
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The collection's version that wrote this row.
    version         BIGINT NOT NULL DEFAULT 0,
    -- Stands for the row in memory and in tombstones: 8 bytes instead of an id, and never used twice.
    key             BIGINT GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (collection_name, id)
);

-- The words of a document for full text search, in a language of PostgreSQL. Immutable, as a generated column asks: the
-- configurations of pg_catalog are no user's to change. What fits no tsvector (1 MB of words) is known by its beginning.
CREATE OR REPLACE FUNCTION vector_words(language TEXT, document TEXT) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF octet_length(document) < 100000 THEN
        RETURN to_tsvector(('pg_catalog.' || language)::regconfig, document);
    END IF;
    LOOP
        BEGIN
            RETURN to_tsvector(('pg_catalog.' || language)::regconfig, document);
        EXCEPTION WHEN program_limit_exceeded THEN
            document := left(document, length(document) / 2);
        END;
    END LOOP;
END $$;

ALTER TABLE vector_collections ADD COLUMN IF NOT EXISTS language TEXT NOT NULL DEFAULT 'english';

ALTER TABLE vector_documents
    -- Where the thing is that the embedding stands for, and what it is: image/png, text/plain.
    ADD COLUMN IF NOT EXISTS uri TEXT,
    ADD COLUMN IF NOT EXISTS media_type TEXT,
    -- The collection's, since a generated column knows its own row only.
    ADD COLUMN IF NOT EXISTS language TEXT NOT NULL DEFAULT 'english',
    ADD COLUMN IF NOT EXISTS tsv TSVECTOR GENERATED ALWAYS AS (vector_words(language, document)) STORED;

-- Random floats do not compress.
ALTER TABLE vector_documents ALTER COLUMN embedding SET STORAGE EXTERNAL;

CREATE INDEX IF NOT EXISTS vector_documents_version ON vector_documents (collection_name, version);
CREATE UNIQUE INDEX IF NOT EXISTS vector_documents_key ON vector_documents (key);
CREATE INDEX IF NOT EXISTS vector_documents_metadata ON vector_documents USING gin (metadata);
CREATE INDEX IF NOT EXISTS vector_documents_tsv ON vector_documents USING gin (tsv);

CREATE TABLE IF NOT EXISTS vector_tombstones (
    collection_name TEXT COLLATE "C" NOT NULL
                    REFERENCES vector_collections ON UPDATE CASCADE ON DELETE CASCADE,
    version         BIGINT NOT NULL,
    key             BIGINT NOT NULL,
    PRIMARY KEY (collection_name, version, key)
);

-- PostgreSQL empties an unlogged table when it recovers from a crash or takes over as a standby. Both may lose commits
-- made with synchronous_commit = off, and their version numbers are then given out again; a new id here tells.
CREATE UNLOGGED TABLE IF NOT EXISTS vector_incarnation (
    single BOOLEAN PRIMARY KEY DEFAULT true CHECK (single),
    id     UUID NOT NULL DEFAULT gen_random_uuid()
);

-- What a text in the syntax of web searches asks of `tsv`, in the language of a collection. Rules of dashes are no words:
-- PostgreSQL takes each for a NOT, whatever signs stand between them, and has room for 32.
CREATE OR REPLACE FUNCTION vector_query(name TEXT, words TEXT) RETURNS tsquery
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT websearch_to_tsquery(('pg_catalog.' || language)::regconfig, regexp_replace(words, '-[\s!&|()-]*-', ' ', 'g'))
    FROM vector_collections WHERE collection_name = name
$$;

-- Raises the version of a collection, once in a transaction, and returns its row as it is then; a row of NULLs when there
-- is no such collection. `width` becomes its dimension if it has none yet. The row stays locked until the transaction
-- ends. A later call in the transaction returns the version only.
CREATE OR REPLACE FUNCTION vector_bump(name TEXT, width INTEGER DEFAULT NULL) RETURNS vector_collections
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    -- A transaction-local setting remembers the version; ROLLBACK TO SAVEPOINT takes it back too.
    memo   TEXT := 'vector.v' || md5(name);
    bumped vector_collections;
BEGIN
    bumped.version := nullif(current_setting(memo, true), '')::BIGINT;
    IF bumped.version IS NOT NULL THEN
        RETURN bumped;
    END IF;
    UPDATE vector_collections SET version = version + 1, dimension = coalesce(dimension, width)
    WHERE collection_name = name RETURNING * INTO bumped;
    IF bumped.dimension IS NOT NULL THEN
        PERFORM set_config(memo, bumped.version::TEXT, true);
    END IF;
    -- Whoever is 10,000 versions behind reads the collection anew.
    IF bumped.version % 1000 = 0 THEN
        UPDATE vector_collections SET tombstone_floor = greatest(tombstone_floor, bumped.version - 10000)
        WHERE collection_name = name;
        DELETE FROM vector_tombstones t WHERE t.collection_name = name AND t.version <= bumped.version - 10000;
    END IF;
    RETURN bumped;
END $$;

-- A collection that is made, dropped, renamed or given another metric has a new history. So has one whose row a restore
-- brings back with the epoch that it had.
CREATE OR REPLACE FUNCTION vector_restart() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM set_config('vector.v' || md5(OLD.collection_name), '', true);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    PERFORM set_config('vector.v' || md5(NEW.collection_name), '', true);
    NEW.epoch := gen_random_uuid();
    RETURN NEW;
END $$;

-- The triggers do for writers of plain SQL what the service does itself; it sets vector.stamped to step past them.
CREATE OR REPLACE FUNCTION vector_stamp() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (OLD.collection_name, OLD.key) IS DISTINCT FROM (NEW.collection_name, NEW.key) THEN
        INSERT INTO vector_tombstones (collection_name, version, key)
        SELECT collection_name, (vector_bump(collection_name)).version, OLD.key
        FROM vector_collections WHERE collection_name = OLD.collection_name
        ON CONFLICT DO NOTHING;
    END IF;
    NEW.version := coalesce((vector_bump(NEW.collection_name, nullif(cardinality(NEW.embedding), 0))).version, 0);
    NEW.language := coalesce(
        (SELECT language FROM vector_collections WHERE collection_name = NEW.collection_name), NEW.language
    );
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION vector_bury() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- A collection that is being dropped or renamed takes its documents along and needs no tombstones.
    INSERT INTO vector_tombstones (collection_name, version, key)
    SELECT collection_name, bumped, key
    FROM deleted JOIN (
        SELECT collection_name, (vector_bump(collection_name)).version AS bumped
        FROM vector_collections WHERE collection_name IN (SELECT collection_name FROM deleted)
        ORDER BY collection_name
    ) AS versions USING (collection_name)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION vector_forget() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE vector_collections SET version = version + 1, epoch = gen_random_uuid();
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER vector_stamp BEFORE INSERT OR UPDATE ON vector_documents FOR EACH ROW
    WHEN (current_setting('vector.stamped', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION vector_stamp();
CREATE OR REPLACE TRIGGER vector_bury AFTER DELETE ON vector_documents REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT
    WHEN (current_setting('vector.stamped', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION vector_bury();
CREATE OR REPLACE TRIGGER vector_forget AFTER TRUNCATE ON vector_documents FOR EACH STATEMENT
    EXECUTE FUNCTION vector_forget();
CREATE OR REPLACE TRIGGER vector_restart_changed BEFORE UPDATE ON vector_collections FOR EACH ROW
    WHEN ((OLD.collection_name, OLD.metric) IS DISTINCT FROM (NEW.collection_name, NEW.metric)
          OR OLD.dimension <> NEW.dimension OR NEW.dimension IS NULL AND OLD.dimension IS NOT NULL)
    EXECUTE FUNCTION vector_restart();
CREATE OR REPLACE TRIGGER vector_restart_made BEFORE INSERT ON vector_collections FOR EACH ROW
    EXECUTE FUNCTION vector_restart();
CREATE OR REPLACE TRIGGER vector_restart_dropped BEFORE DELETE ON vector_collections FOR EACH ROW
    EXECUTE FUNCTION vector_restart();
-- ALWAYS: also for a replication worker or a restore that sets session_replication_role.
ALTER TABLE vector_documents
    ENABLE ALWAYS TRIGGER vector_stamp, ENABLE ALWAYS TRIGGER vector_bury, ENABLE ALWAYS TRIGGER vector_forget;
ALTER TABLE vector_collections
    ENABLE ALWAYS TRIGGER vector_restart_made, ENABLE ALWAYS TRIGGER vector_restart_changed,
    ENABLE ALWAYS TRIGGER vector_restart_dropped;

-- The tables that were set aside above. Documents of no collection have no place in the new tables: they stay where they
-- are, for their owner to look at.
DO $$
DECLARE
    collections BIGINT;
    documents   BIGINT := 0;
    left_behind BIGINT := 0;
BEGIN
    IF current_setting('vector.takes_over', true) IS DISTINCT FROM 'on' THEN
        RETURN;
    END IF;
    PERFORM set_config('vector.takes_over', 'off', true);
    INSERT INTO vector_collections (collection_name, created_at)
    SELECT collection_name, coalesce(created_at, now()) FROM vector_collections_before;
    IF to_regclass('vector_documents_before') IS NOT NULL THEN
        INSERT INTO vector_collections (collection_name)
        SELECT DISTINCT collection_name FROM vector_documents_before WHERE collection_name IS NOT NULL
        ON CONFLICT DO NOTHING;
        PERFORM set_config('vector.stamped', 'off', true);
        INSERT INTO vector_documents (id, collection_name, document, metadata, embedding, created_at)
        SELECT id, collection_name, document, metadata, embedding, coalesce(created_at, now())
        FROM vector_documents_before WHERE collection_name IS NOT NULL;
        GET DIAGNOSTICS documents = ROW_COUNT;
        SELECT count(*) INTO left_behind FROM vector_documents_before WHERE collection_name IS NULL;
    END IF;
    SELECT count(*) INTO collections FROM vector_collections;
    DROP TABLE vector_collections_before CASCADE;
    RAISE WARNING 'taken over from the tables of the crash course: % collection(s), % document(s)',
        collections, documents;
    IF left_behind > 0 THEN
        DELETE FROM vector_documents_before WHERE collection_name IS NOT NULL;
        RAISE WARNING 'left in vector_documents_before: % document(s) without a collection; look at them, then drop it',
            left_behind;
    ELSE
        DROP TABLE IF EXISTS vector_documents_before;
    END IF;
END $$;
