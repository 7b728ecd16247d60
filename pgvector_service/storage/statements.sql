-- Every statement of the service, by name; schema.sql has the tables. `%(name)s` is a parameter of psycopg2, and
-- `/* filter */` the place of a condition that filters.py has made (queries.filtered).

-- name: begin_read
-- The lock comes before the snapshot: TRUNCATE is not MVCC-safe, a reader that begins before it could see an empty table.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL statement_timeout = %(statement_timeout_ms)s;
LOCK TABLE vector_documents IN ACCESS SHARE MODE;

-- name: enter
-- Fails with a division by zero while maintenance holds this lock alone or waits for it; never waits itself. After the
-- lock on the table, since it takes the snapshot.
SELECT 1 / pg_try_advisory_xact_lock_shared(7163384623)::INT;

-- name: shut_out
-- Waits for all transactions that have entered; nobody enters from now on.
SELECT pg_advisory_lock(7163384623);

-- name: session_limits
SET lock_timeout = %(lock_timeout_ms)s;
SET statement_timeout = 0;
SET idle_session_timeout = 0;

-- name: one_statement
-- Before a single statement that needs no snapshot beyond its own; the two travel together and commit by themselves.
SET LOCAL statement_timeout = %(statement_timeout_ms)s;

-- name: statement_timeout
SHOW statement_timeout;

-- name: limited
SET LOCAL statement_timeout = %(statement_timeout)s;

-- name: try_pattern
SELECT '' ~ %(pattern)s;

-- name: unbounded
-- For what takes as long as there are rows.
SET LOCAL statement_timeout = 0;

-- name: begin_write
-- A crash must not take back what was acknowledged. Writers queue for a collection's row at most lock_timeout.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = %(statement_timeout_ms)s;
SET LOCAL lock_timeout = '5s';
SET LOCAL synchronous_commit = on;
SET LOCAL vector.stamped = on;

-- name: apply_lock
SELECT pg_advisory_xact_lock(7163384622);

-- name: warnings_only
SET LOCAL client_min_messages = warning;

-- name: schema_mark
SELECT obj_description(to_regclass('vector_collections'), 'pg_class');

-- name: set_schema_mark
COMMENT ON TABLE vector_collections IS %(mark)s;

-- name: incarnation
SELECT id::TEXT FROM vector_incarnation;

-- name: name_incarnation
INSERT INTO vector_incarnation DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: sign_of_life
SELECT NOT pg_try_advisory_xact_lock_shared(7163384623),
       (SELECT extversion FROM pg_extension WHERE extname = 'vector');

-- name: durability
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off';

-- name: collection
-- A restore that makes the table anew brings old epochs with it; the table's oid tells.
SELECT collection_name, dimension, metric, version, (tableoid, epoch)::TEXT, tombstone_floor, metadata, created_at, language
FROM vector_collections WHERE collection_name = %(name)s;

-- name: collections
SELECT collection_name, dimension, metric, version, (tableoid, epoch)::TEXT, tombstone_floor, metadata, created_at, language,
       (SELECT count(*) FROM vector_documents d WHERE d.collection_name = c.collection_name) AS count
FROM vector_collections c ORDER BY collection_name LIMIT %(limit)s OFFSET %(offset)s;

-- name: collection_total
SELECT count(*) FROM vector_collections;

-- name: create_collection
INSERT INTO vector_collections (collection_name, dimension, metric, metadata, language)
VALUES (%(name)s, %(dimension)s, %(metric)s, %(metadata)s, %(language)s)
ON CONFLICT (collection_name) DO NOTHING;

-- name: update_collection
-- Renaming rewrites the documents' collection_name; the new epoch makes every process read them anew.
UPDATE vector_collections SET
    collection_name = coalesce(%(new_name)s, collection_name),
    metadata = coalesce(%(metadata)s, metadata),
    language = coalesce(%(language)s, language),
    -- Gives the collection another epoch, by a trigger.
    metric = coalesce(%(metric)s, metric),
    -- Remembered filters are worth nothing in another language.
    version = version + CASE WHEN num_nonnulls(%(language)s, %(metric)s) = 0 THEN 0 ELSE 1 END,
    epoch = CASE WHEN %(new_name)s IS NULL THEN epoch ELSE gen_random_uuid() END
WHERE collection_name = %(name)s;

-- name: known_language
SELECT FROM pg_ts_config WHERE cfgname = %(language)s AND cfgnamespace = 'pg_catalog'::regnamespace;

-- name: translate_items
UPDATE vector_documents SET language = %(language)s WHERE collection_name = %(name)s AND language <> %(language)s;

-- name: delete_collection
DELETE FROM vector_collections WHERE collection_name = %(name)s;

-- name: count
SELECT count(*) FROM vector_documents
WHERE collection_name = %(name)s AND (%(ids)s IS NULL OR id = ANY(%(ids)s)) /* filter */;

-- name: count_since
SELECT count(*) FROM vector_documents WHERE collection_name = %(name)s AND version > %(version)s;

-- name: stage
CREATE TEMP TABLE vector_staging (
    id TEXT, document TEXT, uri TEXT, media_type TEXT, metadata JSONB, embedding REAL[]
) ON COMMIT DROP;

-- name: copy_stage
COPY vector_staging (id, document, uri, media_type, metadata, embedding) FROM STDIN (FORMAT binary);

-- name: bump
SAVEPOINT before_bump;
SELECT version, dimension, metric, language FROM vector_bump(%(name)s, %(width)s);

-- name: take_back_bump
ROLLBACK TO SAVEPOINT before_bump;

-- name: upsert
-- Sorted by id, so that writers who share ids lock them in one order.
WITH written AS (
    INSERT INTO vector_documents
        (collection_name, id, document, uri, media_type, metadata, embedding, language, version, updated_at)
    SELECT %(name)s, id, document, uri, media_type, metadata, embedding, %(language)s, %(version)s, %(now)s
    FROM vector_staging ORDER BY id COLLATE "C"
    ON CONFLICT (collection_name, id) DO UPDATE SET
        document = excluded.document, uri = excluded.uri, media_type = excluded.media_type,
        metadata = excluded.metadata, embedding = excluded.embedding, language = excluded.language,
        version = excluded.version, updated_at = excluded.updated_at
    -- xmax is 0 in a row that did not exist before.
    RETURNING xmax = 0 AS added
)
SELECT count(*) FILTER (WHERE added), count(*) FILTER (WHERE NOT added) FROM written;

-- name: insert_new
WITH written AS (
    INSERT INTO vector_documents
        (collection_name, id, document, uri, media_type, metadata, embedding, language, version, updated_at)
    SELECT %(name)s, id, document, uri, media_type, metadata, embedding, %(language)s, %(version)s, %(now)s
    FROM vector_staging ORDER BY id COLLATE "C"
    ON CONFLICT (collection_name, id) DO NOTHING
    RETURNING id
)
SELECT count(*), 0 FROM written;

-- name: existing_ids
SELECT id FROM vector_documents WHERE collection_name = %(name)s AND id = ANY(%(ids)s);

-- name: update_items
-- The items that exist, and whether each was changed. NULL stands for what is not to change; NULLs alone change nothing.
-- The ids come twice, so that rows are found by the index whatever the planner thinks of the temporary table.
WITH updated AS (
    UPDATE vector_documents d SET
        document = coalesce(s.document, d.document),
        uri = coalesce(s.uri, d.uri),
        media_type = coalesce(s.media_type, d.media_type),
        metadata = CASE WHEN s.metadata IS NULL THEN d.metadata ELSE
            (coalesce(d.metadata, '{}') || s.metadata)
            - ARRAY(SELECT key FROM jsonb_each(s.metadata) AS given (key, value) WHERE value = 'null')
        END,
        embedding = coalesce(s.embedding, d.embedding),
        version = %(version)s,
        updated_at = %(now)s
    FROM vector_staging s
    WHERE d.collection_name = %(name)s AND d.id = s.id AND d.id = ANY(%(ids)s)
        AND num_nonnulls(s.document, s.uri, s.media_type, s.metadata, s.embedding) > 0
    RETURNING d.id
)
SELECT id, updated.id IS NOT NULL
FROM vector_documents LEFT JOIN updated USING (id) WHERE collection_name = %(name)s AND id = ANY(%(ids)s);

-- name: delete_items
WITH deleted AS (
    DELETE FROM vector_documents
    WHERE collection_name = %(name)s AND (%(ids)s IS NULL OR id = ANY(%(ids)s)) /* filter */
    RETURNING key
), buried AS (
    INSERT INTO vector_tombstones (collection_name, version, key) SELECT %(name)s, %(version)s, key FROM deleted
)
SELECT count(*) FROM deleted;

-- name: items_by_id
SELECT key, id, document, metadata::TEXT, uri, media_type FROM vector_documents
WHERE collection_name = %(name)s AND id = ANY(%(ids)s) /* filter */;

-- name: items_after
-- `/* sort */`, `/* after */` and `/* order */` are those of a pages.Order.
SELECT key, id, document, metadata::TEXT, uri, media_type, (/* sort */)::TEXT FROM vector_documents
WHERE collection_name = %(name)s /* filter */ /* after */
ORDER BY /* order */ LIMIT %(limit)s;

-- name: items_by_key
-- By key alone: a second condition tempts the planner, while it has no statistics, to scan the whole collection.
SELECT key, id, document, metadata::TEXT, uri, media_type FROM vector_documents WHERE key = ANY(%(keys)s::BIGINT[]);

-- name: items_by_key_if_unchanged
-- Nothing when the collection has moved on since it was ranked. The keys come as the text of an array, which PostgreSQL
-- reads in a fifth of the time that it takes for an ARRAY[...]. No statement_timeout, which would cost as much as all
-- the rest: the pool's watchdog is enough for a look into two indexes.
SELECT d.key, d.id, d.document, d.metadata::TEXT, d.uri, d.media_type
FROM vector_collections c LEFT JOIN vector_documents d ON d.key = ANY(%(keys)s::BIGINT[])
WHERE c.collection_name = %(name)s AND c.version = %(version)s AND (c.tableoid, c.epoch)::TEXT = %(epoch)s;

-- name: keys
-- As 8 bytes each in one value, which are read in a tenth of the time that rows take.
SELECT string_agg(int8send(key), '') FROM vector_documents WHERE collection_name = %(name)s /* filter */;

-- name: ids_by_key
SELECT key, id FROM vector_documents WHERE key = ANY(%(keys)s::BIGINT[]);

-- name: keys_by_id
SELECT id, key FROM vector_documents WHERE collection_name = %(name)s AND id = ANY(%(ids)s);

-- name: groups_by_key
-- Equal values are one group, also if they are written in two ways, such as 1 and 1.0.
SELECT key, (first_value(/* path */) OVER (PARTITION BY /* path */ ORDER BY key))::TEXT
FROM vector_documents WHERE key = ANY(%(keys)s::BIGINT[]);

-- name: search_text
SELECT key, ts_rank_cd(tsv, query) AS score FROM vector_documents, vector_query(%(name)s, %(text)s) AS query
WHERE collection_name = %(name)s AND tsv @@ query /* filter */
ORDER BY score DESC, id LIMIT %(limit)s;

-- name: snippets
-- Bytes that no text should hold stand around the words that were found.
SELECT key, ts_headline(
    ('pg_catalog.' || language)::regconfig, document, vector_query(collection_name, %(text)s),
    E'StartSel=\x02, StopSel=\x03'
)
FROM vector_documents WHERE key = ANY(%(keys)s::BIGINT[]);

-- name: first_by_id
SELECT key FROM vector_documents WHERE key = ANY(%(keys)s) ORDER BY id LIMIT %(limit)s;

-- name: tombstones_since
SELECT key FROM vector_tombstones WHERE collection_name = %(name)s AND version > %(version)s;

-- name: copy_all
COPY (SELECT key, embedding FROM vector_documents WHERE collection_name = %(name)s) TO STDOUT (FORMAT binary);

-- name: has_vector_type
SELECT to_regtype('vector') IS NOT NULL;

-- name: copy_all_as_vectors
COPY (
    SELECT key, embedding::vector(%(dimension)s) FROM vector_documents
    WHERE collection_name = %(name)s AND embedding IS NOT NULL
) TO STDOUT (FORMAT binary);

-- name: copy_since
COPY (SELECT key, embedding FROM vector_documents WHERE collection_name = %(name)s AND version > %(version)s)
TO STDOUT (FORMAT binary);

-- name: copy_keys
COPY (SELECT key, embedding FROM vector_documents WHERE key = ANY(%(keys)s)) TO STDOUT (FORMAT binary);
