"""The database: the only SQL, and the only psycopg2 beside it."""
