"""Import of an export's lines, and compressed requests and answers."""

import gzip
import json
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard
from fastapi.testclient import TestClient

from conftest import Service
from pgvector_db import VectorDB
from pgvector_service.errors import DatabaseBusy, PoolExhausted
from pgvector_service.web import bodies

NDJSON = {"content-type": "application/x-ndjson"}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


def post(client: Any, content: Any, name: str = "copy", **options: Any) -> Any:
    headers = {**NDJSON, **options.pop("headers", {})}
    return client.post("/items/import", params={"collection_name": name, **options}, content=content, headers=headers)


def line(id_: Any, embedding: Any, **more: Any) -> bytes:
    return json.dumps({"id": id_, "embedding": embedding, **more}).encode() + b"\n"


def filled(db: VectorDB, count: int) -> None:
    rng = np.random.default_rng(1)
    db.add_with_embeddings(
        "c",
        [f"é{i}\n" for i in range(count)],
        [None if i % 3 else f"text {i}\u2028" for i in range(count)],
        [None if i % 4 else {"n": i, "deep": [{"a": None}]} for i in range(count)],
        rng.standard_normal((count, 7)).astype(np.float32),
        uris=[None if i % 2 else f"s3://{i}" for i in range(count)],
    )


def test_an_export_can_be_posted_back_as_it_is(db: VectorDB, database: str) -> None:
    filled(db, 2_345)
    with Service(DATABASE_URL=database) as service:
        export = service.client.get("/collections/c/export").content
        answer = post(service.client, export).json()
        assert answer == {
            "collection_name": "copy",
            "lines": 2_345,
            "added": 2_345,
            "updated": 0,
            "ignored": 0,
            "failed": 0,
            "errors": [],
            "version": 3,  # three transactions
        }
        assert service.client.get("/collections/copy/export").content == export

        def slowly() -> Iterator[bytes]:
            rest = export
            while rest:
                size = random.randint(1, 40_000)
                yield rest[:size]
                rest = rest[size:]

        again = post(service.client, slowly()).json()
        assert (again["added"], again["updated"], again["version"]) == (0, 2_345, 6)
        ignored = post(service.client, export, mode="ignore").json()
        assert (ignored["ignored"], ignored["version"]) == (2_345, 6)
        assert service.client.get("/collections/copy/export").content == export


@pytest.mark.parametrize("encoding", COMPRESS)
def test_requests_and_answers_may_be_compressed(db: VectorDB, database: str, encoding: str) -> None:
    filled(db, 4_000)
    compress = COMPRESS[encoding]
    with Service(DATABASE_URL=database) as service, httpx.Client(base_url=service.url, timeout=30) as client:
        plain = client.get("/collections/c/export", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        small = client.get("/collections/c/export", headers={"accept-encoding": encoding})
        assert small.headers["content-encoding"] == encoding
        assert small.content == plain.content
        page = {"collection_name": "c", "limit": 4_000, "include": ["documents", "embeddings"]}
        answers = [
            client.post("/items/get", json=page, headers={"accept-encoding": accepted})
            for accepted in ("identity", encoding)
        ]
        assert answers[0].json() == answers[1].json()
        assert int(answers[0].headers["content-length"]) == len(answers[0].content) > 2**18  # sent in pieces
        assert answers[1].headers["content-encoding"] == encoding

        headers = {"content-encoding": encoding}
        assert post(client, compress(plain.content), headers=headers).json()["added"] == 4_000
        body = json.dumps({"collection_name": "d", "ids": ["a"], "embeddings": [[1, 2]]}).encode()
        headers["content-type"] = "application/json"
        assert client.post("/items", content=compress(body), headers=headers).status_code == 201
        assert client.post("/items", content=compress(body)[:-9], headers=headers).status_code == 422
        wrong = client.post("/items", content=body, headers=headers)
        assert wrong.json()["detail"] == f"body: is not the {encoding} data that Content-Encoding says."
        wrong = client.post("/items", content=body, headers={**headers, "content-encoding": "br"})
        assert (wrong.status_code, wrong.json()["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_body_that_grows_too_large_is_refused(client: TestClient, encoding: str) -> None:
    bomb = COMPRESS[encoding](b" " * (50 * 2**20))
    headers = {"content-type": "application/json", "content-encoding": encoding}
    assert len(bomb) < 2**16
    answer = client.post("/items", content=bomb, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    answer = post(client, bomb, headers={"content-encoding": encoding})
    assert answer.json()["detail"].startswith("The line 1 exceeds 1048576 bytes")


def test_wrong_lines_are_left_out_and_told(client: TestClient) -> None:
    wrong: dict[int, tuple[bytes, str]] = {
        3: (b"{\n", "line: is not valid JSON"),
        5: (b"[1]\n", "line: must be a JSON object."),
        6: (line("x6", [1, 2], extra=1), "line: has a field that is none of id, document"),
        7: (line(7, [1, 2]), "id: must be a string."),
        8: (line("", [1, 2]), "id: must have 1 to 512 bytes."),
        9: (line("x9", None), "embedding: must be a list of numbers or base64 text."),
        10: (line("x10", [1, "2"]), "embedding[1]: must be a number."),
        11: (line("x11", [0, 0]), "embedding: is all zeros"),
        12: (line("x12", [1, 2, 3]), "embedding: expected 2 numbers"),
        13: (line("x13", [1, 2], metadata=[1]), "metadata: must be an object."),
        14: (line("x14", [1, 2], document="a\0"), "document: holds a NUL"),
    }
    lines = {number: line(f"good{number}", [1, number]) for number in (1, 2, 15, 16)}
    lines |= {4: b"\n", **{number: text for number, (text, _) in wrong.items()}}
    answer = post(client, b"".join(lines[number] for number in sorted(lines))).json()

    assert (answer["lines"], answer["added"], answer["failed"], answer["version"]) == (16, 4, len(wrong), 1)
    assert [error["line"] for error in answer["errors"]] == sorted(wrong)
    for error in answer["errors"]:
        assert error["detail"].startswith(wrong[error["line"]][1]), error
    stored = client.post("/items/get", json={"collection_name": "copy"}).json()["ids"]
    assert stored == ["good1", "good15", "good16", "good2"]

    insert = post(client, line("good1", [5, 5]) + line("new", [5, 5]), mode="insert").json()
    assert (insert["added"], insert["failed"]) == (1, 1)
    assert insert["errors"] == [{"line": 1, "detail": "id: exists already, and mode is insert."}]
    many = post(client, b"{}\n" * 250).json()
    assert (many["failed"], len(many["errors"]), many["version"]) == (250, 100, None)
    assert post(client, b"").json()["lines"] == 0


def test_the_last_line_with_an_id_wins_as_if_they_came_one_by_one(client: TestClient) -> None:
    answer = post(client, line("a", [1, 0]) + line("b", [1, 0]) + line("a", [0, 1])).json()
    assert (answer["added"], answer["updated"], answer["version"]) == (2, 1, 2)
    assert client.get("/collections/copy/items/a").json()["embedding"] == [0, 1]


def test_an_import_that_cannot_be_done_is_refused_as_a_whole(client: TestClient) -> None:
    for answer, status, detail in (
        (post(client, line("a", [1, 2]), name="a/b"), 422, "collection_name: must not contain '/'"),
        (post(client, b"{}", name="x" * 513), 422, "collection_name: must have 1 to 512 bytes"),
        (post(client, b"{}", name="x/y"), 422, "collection_name: must not contain '/'"),
        (post(client, line("a", [1, 2]), mode="x"), 422, "mode: input should be 'upsert'"),
        (
            post(client, line("a", [1, 2]), headers={"content-type": "text/plain; x=json"}),
            422,
            "body: must be lines of JSON",
        ),
        (post(client, line("a", [1, 2]), headers={"content-encoding": "x"}), 415, "The request body is compressed"),
    ):
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].startswith(detail)
    assert client.get("/collections").json()["total"] == 0


def test_an_import_that_is_cut_off_says_how_many_lines_are_stored(
    db: VectorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgvector_service.input.lines.BATCH_LINES", 10)
    add = db.add_with_embeddings

    def once(*args: Any, **options: Any) -> Any:
        if args[0] == "c" and db.list_collections()["total"]:
            raise DatabaseBusy
        return add(*args, **options)

    monkeypatch.setattr(db, "add_with_embeddings", once)
    with pytest.raises(DatabaseBusy, match="The lines up to 10 are done; send the rest again"):
        db.import_items("c", [line(f"id{i}", [1.0, i]) for i in range(25)])
    assert db.count_items("c")["count"] == 10


def test_few_imports_run_at_once_and_a_client_that_goes_away_ends_its_own(
    db: VectorDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting() -> Iterator[bytes]:
        yield line("a", [1, 2])
        with pytest.raises(PoolExhausted, match="Too many imports"):
            few.import_items("c", [])

    with VectorDB(database, pool_size=4) as few:
        assert few.import_items("c", waiting())["added"] == 1

    head = "POST /items/import?collection_name=d HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
    with Service(DATABASE_URL=database) as service:
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + line("b", [1, 2]))
        assert post(service.client, line("c", [1, 2]), name="d").json()["added"] == 1
        assert service.client.post("/items/get", json={"collection_name": "d"}).json()["ids"] == ["c"]
        assert " 499 " in service.log()
        assert "Traceback" not in service.log()


def test_a_client_that_falls_silent_is_hung_up_on(database: str) -> None:
    prelude = "from pgvector_service.web import bodies; bodies.SILENCE_S = 0.3"
    assert bodies.SILENCE_S == 60
    with Service(prelude=prelude, DATABASE_URL=database) as service:
        for path in ("/items/import?collection_name=d", "/items"):
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 9\r\n\r\n"
            with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
                connection.sendall(head.encode() + b"{")
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
