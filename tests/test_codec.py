import io
import struct
from collections.abc import Callable

import numpy as np
import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgvector_service.storage.codec import RowReader, decode_array, encode_arrays, encode_items

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def no_misfit(key: int, vector: np.ndarray | None) -> None:
    pytest.fail(f"row {key} does not fit: {vector}")


def spaced(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\n", " "))


def test_items_are_encoded_as_postgresql_documents_it() -> None:
    encoded = encode_items([["a"], ["hé"]], [b"{}"], encode_arrays(np.array([[1.0, -2.0]], np.float32)))

    assert encoded == spaced("""
        50 47 43 4f 50 59 0a ff 0d 0a 00  00 00 00 00  00 00 00 00
        00 04
        00 00 00 01  61
        00 00 00 03  68 c3 a9
        00 00 00 03  01 7b 7d
        00 00 00 24
          00 00 00 01  00 00 00 00  00 00 02 bc  00 00 00 02  00 00 00 01
          00 00 00 04  3f 80 00 00
          00 00 00 04  c0 00 00 00
        ff ff
    """)


def test_missing_texts_are_encoded_as_null() -> None:
    encoded = encode_items([["a"], [None]], [None], encode_arrays(np.array([[1.0]], np.float32)))

    assert spaced("00 00 00 01 61  ff ff ff ff  ff ff ff ff  00 00 00 1c") in encoded


def test_a_column_that_nobody_gave_is_all_null() -> None:
    assert encode_items([["a", "b"], None], None, [b"x", b"y"]) == encode_items(
        [["a", "b"], [None, None]], [None, None], [b"x", b"y"]
    )


def test_any_memory_layout_of_a_matrix_is_encoded_alike() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = encode_arrays(rows)

    assert encode_arrays(np.asfortranarray(rows)) == expected
    assert encode_arrays(rows.astype(">f4").astype(np.float32)) == expected
    assert encode_arrays(np.repeat(rows, 2, axis=0)[::2]) == expected


def header(*numbers: int) -> bytes:
    return struct.pack(f"!{len(numbers)}i", *numbers)


@pytest.mark.parametrize(
    "data",
    [
        header(0, 0, 700),  # {}
        header(2, 0, 700, 1, 1, 1, 1, 4, 0),  # {{0}}
        header(1, 1, 700, 1, 1, -1),  # {NULL}
        header(1, 0, 700, 2, 1, 4, 0),  # cut short
    ],
)
def test_an_array_that_is_no_list_of_numbers_is_none(data: bytes) -> None:
    assert decode_array(data) is None


@pytest.fixture(scope="module")
def connection(server: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(server)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE sent (id TEXT, document TEXT, metadata JSONB, embedding REAL[])")
        cursor.execute("CREATE TEMP TABLE stored (key BIGINT, embedding REAL[])")
    return connection


@settings(max_examples=60)
@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 40)), elements=FLOATS),
    texts=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=20, max_size=20
    ),
)
def test_postgresql_reads_what_is_encoded_and_its_answer_is_decoded_bit_by_bit(
    connection: psycopg2.extensions.connection, rows: np.ndarray, texts: list[str]
) -> None:
    count = len(rows)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE sent")
        encoded = encode_items([texts[:count]] * 2, [b'{"a": 1}'] * count, encode_arrays(rows))
        cursor.copy_expert("COPY sent FROM STDIN (FORMAT binary)", io.BytesIO(encoded))
        cursor.execute("SELECT id, document, metadata, embedding FROM sent")
        for i, (id_, document, metadata, embedding) in enumerate(cursor.fetchall()):
            assert (id_, document, metadata) == (texts[i], texts[i], {"a": 1})
            assert np.array(embedding, np.float32).tobytes() == rows[i].tobytes()

        received: list[np.ndarray] = []
        reader = RowReader(rows.shape[1], lambda keys, block: received.append(block), no_misfit, block_bytes=500)
        cursor.copy_expert("COPY (SELECT 1::BIGINT, embedding FROM sent) TO STDOUT (FORMAT binary)", reader)
        reader.close()
        assert np.concatenate(received).tobytes() == rows.tobytes()


@pytest.mark.parametrize("block_bytes", [1, 300, 10**6])
def test_rows_that_do_not_fit_are_named_and_the_others_read(
    connection: psycopg2.extensions.connection, block_bytes: int
) -> None:
    good = {1: "{1,2,3}", 2: "{4,NaN,-Infinity}", 9: "{0.1,8,9}", -5: "{0,-0,1e-45}"}
    bad = {3: "{1,2}", 4: None, 5: "{1,NULL,3}", 6: "{{1},{2},{3}}", 7: "{}", 8: "[0:3]={1,2,3,4}"}
    received: dict[int, np.ndarray] = {}
    misfits: dict[int, np.ndarray | None] = {}

    def take(keys: np.ndarray, rows: np.ndarray) -> None:
        received.update(zip(keys.tolist(), rows, strict=True))

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE stored")
        for key in sorted([*good, *bad]):
            cursor.execute("INSERT INTO stored VALUES (%s, %s::REAL[])", (key, good.get(key) or bad.get(key)))
        reader = RowReader(3, take, misfits.__setitem__, block_bytes)
        cursor.copy_expert("COPY stored TO STDOUT (FORMAT binary)", reader)
        reader.close()

    assert set(received) == set(good)
    for key, text in good.items():
        expected = np.array([float(number) for number in text.strip("{}").split(",")], np.float32)
        assert received[key].tobytes() == expected.tobytes()
    vectors = {key: None if vector is None else vector.tolist() for key, vector in misfits.items()}
    assert vectors == {3: [1, 2], 4: None, 5: None, 6: None, 7: None, 8: [1, 2, 3, 4]}


def test_an_empty_answer_has_no_rows(connection: psycopg2.extensions.connection) -> None:
    refuse: Callable[..., None] = pytest.fail
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE stored")
        reader = RowReader(3, refuse, no_misfit)
        cursor.copy_expert("COPY stored TO STDOUT (FORMAT binary)", reader)
        reader.close()


def test_a_row_may_look_like_the_end_of_the_stream_wherever_it_is_cut(
    connection: psycopg2.extensions.connection,
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE stored")
        # A NULL ends in ff ff, as the stream does; 18 of them are as long as 7 fitting rows and a trailer.
        cursor.execute("INSERT INTO stored SELECT i, NULL FROM generate_series(1, 60) i")
        cursor.execute("INSERT INTO stored SELECT i, '{NaN}' FROM generate_series(61, 70) i")
        for block_bytes in range(1, 500, 3):
            keys: list[int] = []
            misfits: dict[int, np.ndarray | None] = {}
            take = lambda block, _, keys=keys: keys.extend(block.tolist())  # noqa: E731
            reader = RowReader(1, take, misfits.__setitem__, block_bytes)
            cursor.copy_expert("COPY stored TO STDOUT (FORMAT binary)", reader)
            reader.close()
            assert (len(misfits), len(keys)) == (60, 10)


def test_an_array_that_once_held_a_null_is_a_vector(connection: psycopg2.extensions.connection) -> None:
    received: list[list[float]] = []
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE stored")
        cursor.execute("INSERT INTO stored VALUES (1, '{1,NULL}'), (2, '{3,4}'); UPDATE stored SET embedding[2] = 2")
        reader = RowReader(2, lambda _, rows: received.extend(rows.tolist()), no_misfit)
        cursor.copy_expert("COPY stored TO STDOUT (FORMAT binary)", reader)
        reader.close()
    assert sorted(received) == [[1, 2], [3, 2]]
