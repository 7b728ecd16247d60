-- A database that version 0.1.0 of the service has made before it had filters and full text (schema e0a988c55ccb4432), as
-- pg_dump --inserts wrote it, without comments.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE public.vector_collections (
    collection_name text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    dimension integer,
    metric text DEFAULT 'cosine'::text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    epoch uuid DEFAULT gen_random_uuid() NOT NULL,
    tombstone_floor bigint DEFAULT 0 NOT NULL,
    CONSTRAINT vector_collections_dimension_check CHECK (((dimension >= 1) AND (dimension <= 16384))),
    CONSTRAINT vector_collections_metric_check CHECK ((metric = ANY (ARRAY['cosine'::text, 'euclidean'::text, 'manhattan'::text, 'ip'::text])))
)
WITH (fillfactor='20');

COMMENT ON TABLE public.vector_collections IS 'pgvector-service e0a988c55ccb4432';

CREATE FUNCTION public.vector_bump(name text, width integer DEFAULT NULL::integer) RETURNS public.vector_collections
    LANGUAGE plpgsql
    SET search_path TO '$user', 'public'
    AS $$
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

CREATE FUNCTION public.vector_bury() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO '$user', 'public'
    AS $$
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

CREATE FUNCTION public.vector_forget() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO '$user', 'public'
    AS $$
BEGIN
    UPDATE vector_collections SET version = version + 1, epoch = gen_random_uuid();
    RETURN NULL;
END $$;

CREATE FUNCTION public.vector_restart() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO '$user', 'public'
    AS $$
BEGIN
    PERFORM set_config('vector.v' || md5(OLD.collection_name), '', true);
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    PERFORM set_config('vector.v' || md5(NEW.collection_name), '', true);
    NEW.epoch := gen_random_uuid();
    RETURN NEW;
END $$;

CREATE FUNCTION public.vector_stamp() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO '$user', 'public'
    AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (OLD.collection_name, OLD.key) IS DISTINCT FROM (NEW.collection_name, NEW.key) THEN
        INSERT INTO vector_tombstones (collection_name, version, key)
        SELECT collection_name, (vector_bump(collection_name)).version, OLD.key
        FROM vector_collections WHERE collection_name = OLD.collection_name
        ON CONFLICT DO NOTHING;
    END IF;
    NEW.version := coalesce((vector_bump(NEW.collection_name, nullif(cardinality(NEW.embedding), 0))).version, 0);
    RETURN NEW;
END $$;

CREATE TABLE public.vector_documents (
    id text NOT NULL COLLATE pg_catalog."C",
    collection_name text NOT NULL COLLATE pg_catalog."C",
    document text,
    metadata jsonb,
    embedding real[],
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    key bigint NOT NULL
);
ALTER TABLE ONLY public.vector_documents ALTER COLUMN embedding SET STORAGE EXTERNAL;

ALTER TABLE public.vector_documents ALTER COLUMN key ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.vector_documents_key_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE UNLOGGED TABLE public.vector_incarnation (
    single boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    CONSTRAINT vector_incarnation_single_check CHECK (single)
);

CREATE TABLE public.vector_tombstones (
    collection_name text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    key bigint NOT NULL
);

INSERT INTO public.vector_collections VALUES
	('notes é', '2026-11-22 16:50:16.832921+00', 2, 'cosine', '{}', 1, '6d472a77-3259-4e4c-aae7-f929be3cbe26', 0),
	('empty', '2026-11-22 16:50:16.837071+00', 3, 'cosine', '{}', 0, 'd1929bca-034d-4d8e-959a-08dbf4d9d340', 0),
	('papers', '2026-11-22 16:50:16.81614+00', 4, 'euclidean', '{"team": "x"}', 4, '363b7b3c-78f5-41cd-aa5c-bb541cfdf6b4', 0);

INSERT INTO public.vector_documents OVERRIDING SYSTEM VALUE VALUES
	('p00', 'papers', NULL, NULL, '{1.25,-2,-1.5,-1.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 1),
	('p01', 'papers', 'Paper 1 about fishes', '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{-1.5,1.25,1.5,0.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 2),
	('p02', 'papers', 'Paper 2 about stars', '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{-2.25,-2,-1,-0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 3),
	('p04', 'papers', 'Paper 4 about stars', '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{0.75,1,-2.25,-1.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 5),
	('p07', 'papers', NULL, '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{-1.5,1,1,2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 8),
	('p08', 'papers', 'Paper 8 about stars', '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{1.25,-1,-1,0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 9),
	('p09', 'papers', 'Paper 9 about fishes', '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{0.5,0.75,1.5,-1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 10),
	('p10', 'papers', 'Paper 10 about stars', NULL, '{1.75,-2.25,-2,2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 11),
	('p11', 'papers', 'Paper 11 about fishes', '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{1.75,-1,-1.75,-1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 12),
	('p12', 'papers', 'Paper 12 about stars', '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{-2.25,1.75,0.5,0.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 13),
	('p13', 'papers', 'Paper 13 about fishes', '{"year": 2003, "o''clock": "it''s \\ 100%"}', '{-1.25,-0.25,-1.5,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 14),
	('p14', 'papers', NULL, '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{-0.25,-2.25,-1.25,0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 15),
	('p15', 'papers', 'Paper 15 about fishes', NULL, '{0,-0.75,-1.25,-2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 16),
	('p16', 'papers', 'Paper 16 about stars', '{"year": 2006, "o''clock": "it''s \\ 100%"}', '{0.25,0.5,0,1.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 17),
	('p17', 'papers', 'Paper 17 about fishes', '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{1.75,-1.5,0.25,0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 18),
	('p18', 'papers', 'Paper 18 about stars', '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{-1.25,-1,-0.25,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 19),
	('p19', 'papers', 'Paper 19 about fishes', '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{-1,0.75,0.5,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 20),
	('p20', 'papers', 'Paper 20 about stars', NULL, '{-0.75,1.25,1.5,0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 21),
	('p21', 'papers', NULL, '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{-2.25,0.75,-1.25,1.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 22),
	('p22', 'papers', 'Paper 22 about stars', '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{1.75,-0.5,2,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 23);
INSERT INTO public.vector_documents OVERRIDING SYSTEM VALUE VALUES
	('p23', 'papers', 'Paper 23 about fishes', '{"year": 2003, "o''clock": "it''s \\ 100%"}', '{-1,1.5,-0.75,-2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 24),
	('p24', 'papers', 'Paper 24 about stars', '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{0.25,1.5,0.5,-0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 25),
	('p25', 'papers', 'Paper 25 about fishes', NULL, '{1.75,-0.25,-0.75,-1.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 26),
	('p26', 'papers', 'Paper 26 about stars', '{"year": 2006, "o''clock": "it''s \\ 100%"}', '{-1.5,0.75,1.25,-1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 27),
	('p27', 'papers', 'Paper 27 about fishes', '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{0.5,1.5,-1.75,-1.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 28),
	('p28', 'papers', NULL, '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{0,0.25,-0.5,-0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 29),
	('p29', 'papers', 'Paper 29 about fishes', '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{-1.75,0.5,1.75,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 30),
	('p30', 'papers', 'Paper 30 about stars', NULL, '{1.25,-1.5,-2.25,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 31),
	('p31', 'papers', 'Paper 31 about fishes', '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{-1.5,1,-1,0.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 32),
	('p32', 'papers', 'Paper 32 about stars', '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{1.75,1.75,-0.25,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 33),
	('p33', 'papers', 'Paper 33 about fishes', '{"year": 2003, "o''clock": "it''s \\ 100%"}', '{-1.25,1.5,0.25,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 34),
	('p34', 'papers', 'Paper 34 about stars', '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{1.5,2,2,0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 35),
	('p35', 'papers', NULL, NULL, '{2,0.25,0,2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 36),
	('p36', 'papers', 'Paper 36 about stars', '{"year": 2006, "o''clock": "it''s \\ 100%"}', '{0.25,1.25,-0.75,1.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 37),
	('p37', 'papers', 'Paper 37 about fishes', '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{2,-2.25,0,-0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 38),
	('p38', 'papers', 'Paper 38 about stars', '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{-2.25,-2,-1.25,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 39),
	('p39', 'papers', 'Paper 39 about fishes', '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{0.75,-1.5,0.5,1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 40),
	('p40', 'papers', 'Paper 40 about stars', NULL, '{-0.25,-1.75,-2,-1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 41),
	('p41', 'papers', 'Paper 41 about fishes', '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{-0.5,-0.25,-1,1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 42),
	('p42', 'papers', NULL, '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{0.25,2,1.75,0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 43);
INSERT INTO public.vector_documents OVERRIDING SYSTEM VALUE VALUES
	('p43', 'papers', 'Paper 43 about fishes', '{"year": 2003, "o''clock": "it''s \\ 100%"}', '{-2.25,-1.5,1,0}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 44),
	('p44', 'papers', 'Paper 44 about stars', '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{1.75,0.75,1.25,-2.25}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 45),
	('p45', 'papers', 'Paper 45 about fishes', NULL, '{-1,0.75,0.5,-0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 46),
	('p03', 'papers', 'Replaced', NULL, '{1,2,3,4}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.829192+00', 2, 4),
	('p46', 'papers', 'Paper 46 about stars', '{"year": 2006, "o''clock": "it''s \\ 100%"}', '{-1.75,0.25,-2,0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 47),
	('p47', 'papers', 'Paper 47 about fishes', '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{1.25,0.75,-2,0}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 48),
	('p48', 'papers', 'Paper 48 about stars', '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{-1,0,0.75,-1.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 49),
	('p49', 'papers', NULL, '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{-2.25,-0.25,0.5,-1.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 50),
	('p50', 'papers', 'Paper 50 about stars', NULL, '{1.75,-0.25,2,0}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 51),
	('p51', 'papers', 'Paper 51 about fishes', '{"year": 2001, "o''clock": "it''s \\ 100%"}', '{1,1,-0.25,-0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 52),
	('p52', 'papers', 'Paper 52 about stars', '{"year": 2002, "o''clock": "it''s \\ 100%"}', '{0.75,-2.25,0.5,0}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 53),
	('p53', 'papers', 'Paper 53 about fishes', '{"year": 2003, "o''clock": "it''s \\ 100%"}', '{-1.75,-1.5,-2.25,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 54),
	('p54', 'papers', 'Paper 54 about stars', '{"year": 2004, "o''clock": "it''s \\ 100%"}', '{0.75,-0.75,2,-0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 55),
	('p55', 'papers', 'Paper 55 about fishes', NULL, '{-1,1.75,-2,-0.5}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 56),
	('p56', 'papers', NULL, '{"year": 2006, "o''clock": "it''s \\ 100%"}', '{-2.25,-0.75,1,-0.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 57),
	('p57', 'papers', 'Paper 57 about fishes', '{"year": 2007, "o''clock": "it''s \\ 100%"}', '{-0.25,-0.25,-2,-2}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 58),
	('p58', 'papers', 'Paper 58 about stars', '{"year": 2008, "o''clock": "it''s \\ 100%"}', '{-1,0,-2,1.75}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 59),
	('p59', 'papers', 'Paper 59 about fishes', '{"year": 2009, "o''clock": "it''s \\ 100%"}', '{1.5,0.25,1,1}', '2026-11-22 16:50:16.818426+00', '2026-11-22 16:50:16.822161+00', 1, 60),
	('p61', 'papers', 'New', NULL, '{4,3,2,1}', '2026-11-22 16:50:16.826704+00', '2026-11-22 16:50:16.829192+00', 2, 62),
	('n/1', 'notes é', 'größe', '{"k": [1, null]}', '{1,0.5}', '2026-11-22 16:50:16.832921+00', '2026-11-22 16:50:16.835606+00', 1, 63);
INSERT INTO public.vector_documents OVERRIDING SYSTEM VALUE VALUES
	('sql', 'papers', 'by plain SQL, no embedding', NULL, NULL, '2026-11-22 16:50:16.842105+00', '2026-11-22 16:50:16.842105+00', 4, 64);

INSERT INTO public.vector_incarnation VALUES
	(true, '23158df8-b4e5-42e2-a341-59b860e1050b');

INSERT INTO public.vector_tombstones VALUES
	('papers', 3, 6),
	('papers', 3, 7);

SELECT pg_catalog.setval('public.vector_documents_key_seq', 64, true);

ALTER TABLE ONLY public.vector_collections
    ADD CONSTRAINT vector_collections_pkey PRIMARY KEY (collection_name);

ALTER TABLE ONLY public.vector_documents
    ADD CONSTRAINT vector_documents_pkey PRIMARY KEY (collection_name, id);

ALTER TABLE ONLY public.vector_incarnation
    ADD CONSTRAINT vector_incarnation_pkey PRIMARY KEY (single);

ALTER TABLE ONLY public.vector_tombstones
    ADD CONSTRAINT vector_tombstones_pkey PRIMARY KEY (collection_name, version, key);

CREATE UNIQUE INDEX vector_documents_key ON public.vector_documents USING btree (key);

CREATE INDEX vector_documents_metadata ON public.vector_documents USING gin (metadata);

CREATE INDEX vector_documents_version ON public.vector_documents USING btree (collection_name, version);

CREATE TRIGGER vector_bury AFTER DELETE ON public.vector_documents REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT WHEN ((current_setting('vector.stamped'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION public.vector_bury();

ALTER TABLE public.vector_documents ENABLE ALWAYS TRIGGER vector_bury;

CREATE TRIGGER vector_forget AFTER TRUNCATE ON public.vector_documents FOR EACH STATEMENT EXECUTE FUNCTION public.vector_forget();

ALTER TABLE public.vector_documents ENABLE ALWAYS TRIGGER vector_forget;

CREATE TRIGGER vector_restart_changed BEFORE UPDATE ON public.vector_collections FOR EACH ROW WHEN ((((old.collection_name IS DISTINCT FROM new.collection_name) OR (old.metric IS DISTINCT FROM new.metric)) OR (old.dimension <> new.dimension) OR ((new.dimension IS NULL) AND (old.dimension IS NOT NULL)))) EXECUTE FUNCTION public.vector_restart();

ALTER TABLE public.vector_collections ENABLE ALWAYS TRIGGER vector_restart_changed;

CREATE TRIGGER vector_restart_dropped BEFORE DELETE ON public.vector_collections FOR EACH ROW EXECUTE FUNCTION public.vector_restart();

ALTER TABLE public.vector_collections ENABLE ALWAYS TRIGGER vector_restart_dropped;

CREATE TRIGGER vector_stamp BEFORE INSERT OR UPDATE ON public.vector_documents FOR EACH ROW WHEN ((current_setting('vector.stamped'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION public.vector_stamp();

ALTER TABLE public.vector_documents ENABLE ALWAYS TRIGGER vector_stamp;

ALTER TABLE ONLY public.vector_documents
    ADD CONSTRAINT vector_documents_collection_name_fkey FOREIGN KEY (collection_name) REFERENCES public.vector_collections(collection_name) ON UPDATE CASCADE ON DELETE CASCADE;

ALTER TABLE ONLY public.vector_tombstones
    ADD CONSTRAINT vector_tombstones_collection_name_fkey FOREIGN KEY (collection_name) REFERENCES public.vector_collections(collection_name) ON UPDATE CASCADE ON DELETE CASCADE;
