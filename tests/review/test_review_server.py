"""What the server answers, refuses, and keeps out of addresses and logs."""

import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
import uvicorn

from meditune.review import review_server
from meditune.review.rating_set import RATE, read_key, read_set
from meditune.review.ratings_store import Rating, Store
from meditune.review.review_server import BODY_BYTES, LOCAL, ReviewApp, app_for
from tests.commands import meditune
from tests.review.known_ratings import made_rating_set, served


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A served set: its folder, process and address."""
    folder = made_rating_set(tmp_path_factory.mktemp("server"), 3)
    with served(folder) as (process, address):
        yield folder, process, address.rstrip("/")


def asked(address, path, method="GET", body=None, **headers):
    """(status, headers, content)."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address + path, data, named | {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def rater(address, name="Ann"):
    return json.loads(asked(address, "/api/raters", "POST", {"name": name})[2])["rater"]


def test_nothing_the_server_says_tells_whose_an_answer_is(place):
    folder, _, address = place
    me = rater(address)
    key, _ = read_key(folder)
    work = json.loads(asked(address, "/api/work", x_rater=me)[2])
    assert {entry["id"] for entry in work} == set(key)
    for id, row in key.items():
        item = asked(address, f"/api/items/{id}", x_rater=me)[2]
        assert set(json.loads(item)) == {
            *("id", "question", "context", "answer", "ratings", "comment", "better", "votes")
        }
        assert not any(word in item for word in (*row.origins, row.example, row.group + '"'))
    for path in ("/key.json", "/..%2fkey.json", "/openapi.json", "/docs"):
        assert asked(address, path)[0] == 404


def test_pages_load_nothing_from_elsewhere_and_run_no_inline_script(place):
    _, _, address = place
    for path in ("/", "/review.js", "/saving.js", "/review.css", "/icon.svg"):
        status, headers, text = asked(address, path)
        assert status == 200
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/api/items/{id}/ratings/helpfulness", {"option": 4}, 422),
        ("PUT", "/api/items/{id}/ratings/helpfulness", {"option": 0}, 422),
        ("PUT", "/api/items/{id}/ratings/helpfulness", {"option": "1; DROP"}, 422),
        ("PUT", "/api/items/{id}/ratings/helpfulness", {"option": 1, "seconds": -1}, 422),
        ("PUT", "/api/items/{id}/ratings/consensus", {"option": 1}, 404),
        ("PUT", "/api/items/nothing/ratings/helpfulness", {"option": 1}, 404),
        ("PUT", "/api/items/{id}/notes", {"comment": "x" * 20_001}, 422),
        ("POST", "/api/raters", {"name": "  "}, 422),
    ],
)
def test_what_makes_no_sense_is_refused(place, method, path, body, status):
    folder, _, address = place
    me = rater(address)
    id = next(iter(read_key(folder)[0]))
    assert asked(address, path.format(id=id), method, body, x_rater=me)[0] == status
    assert Store(folder).ratings() == []


def test_strangers_are_refused(place):
    _, _, address = place
    assert asked(address, "/api/work", x_rater="somebody")[0] == 403
    assert asked(address, "/api/set", Host="evil.example")[0] == 421
    assert asked(address, "/api/raters", "POST", {"name": "x"}, Origin="http://evil.example")[0] == 403
    own = {"Origin": address}
    assert asked(address, "/api/raters", "POST", {"name": "x"}, **own)[0] == 200


def test_names_and_words_stay_out_of_the_log(tmp_path):
    folder = made_rating_set(tmp_path, 1)
    with served(folder) as (process, address):
        me = rater(address.rstrip("/"), "Dr Secret")
        id = next(iter(read_key(folder)[0]))
        body = {"comment": "private words", "better": ""}
        assert asked(address.rstrip("/"), f"/api/items/{id}/notes", "PUT", body, x_rater=me)[0] == 204
        asked(address.rstrip("/"), f"/api/items/{id}/notes", "PUT", {"comment": 5}, x_rater=me)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(word in out + err for word in ("Secret", "private", "Traceback"))


def test_a_taken_port_is_told(place):
    folder, _, address = place
    port = address.rpartition(":")[2]
    meditune("review", "serve", folder, "--port", port).refused(1, f"Cannot listen on 127.0.0.1:{port}", "--port 0")


def test_adjudication_shows_what_raters_disagree_on(tmp_path):
    folder = made_rating_set(tmp_path, 3)
    meditune("review", "serve", folder, "--adjudicate").refused(1, "nothing to adjudicate")
    store = Store(folder)
    near, far, same = list(read_key(folder)[0])[:3]
    for name, options in (("Ann", (1, 1, 2)), ("Bo", (2, 3, 2))):
        me = store.rater(name).id
        store.save([Rating(me, id, "helpfulness", o, 1.0) for id, o in zip((near, far, same), options, strict=True)])
        store.save([Rating(me, id, "intent", 1, 1.0) for id in (near, far)])
    with served(folder, "--adjudicate") as (_, address):
        chief = rater(address.rstrip("/"), "Chief")
        work = json.loads(asked(address.rstrip("/"), "/api/work", x_rater=chief)[2])
        assert [(entry["id"], entry["axes"]) for entry in work] == [(far, ["helpfulness"]), (near, ["helpfulness"])]
        shown = json.loads(asked(address.rstrip("/"), f"/api/items/{far}", x_rater=chief)[2])
        assert shown["votes"] == {"helpfulness": {"1": 1, "3": 1}}
        path = f"/api/items/{far}/ratings/helpfulness"
        assert asked(address.rstrip("/"), path, "PUT", {"option": 2}, x_rater=chief)[0] == 204
    assert [(r.option, r.round) for r in store.ratings(item=far) if r.axis == "helpfulness"] == [(1, 1), (3, 1), (2, 2)]


def raw(address, *pieces, host=None, length=None, method="POST", path="/api/raters"):
    """The status of a request written by hand, whose body is sent in pieces."""
    parts = urlsplit(address)
    head = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc if host is None else host}"]
    head += ["Content-Type: application/json", "Connection: close"]
    head.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    with socket.create_connection((parts.hostname, parts.port), 10) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
        for piece in pieces:
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if length is None else piece)
        if length is None:
            connection.sendall(b"0\r\n\r\n")
        reply = connection.makefile("rb").read()
    return int(reply.split()[1])


@pytest.mark.parametrize("host", ["[", "[::1", "::]", "[x]:1", "a@[", "\xff[", ""])
def test_a_host_that_is_none_is_refused(place, host):
    _, _, address = place
    assert raw(address, b"{}", host=host, length=2) in {400, 421}
    assert raw(address, host=host, length=0, method="GET", path="/") in {400, 421}


@pytest.mark.parametrize("origin", ["http://[", "http://[x]/", "null"])
def test_an_origin_that_is_none_is_refused(place, origin):
    _, _, address = place
    assert asked(address, "/api/set", Origin=origin)[0] in {400, 403}


@pytest.fixture
def impatient(place, monkeypatch):
    """The address of a server that soon gives up waiting for the rest of a body."""
    monkeypatch.setattr(review_server, "DRAIN_S", 0.3)
    app = app_for(ReviewApp(read_set(place[0], RATE), Store(place[0]), None), LOCAL, None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server didn't start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_a_body_has_a_limit_however_it_is_sent(impatient):
    address = impatient
    long = json.dumps({"name": "x" * BODY_BYTES}).encode()
    assert raw(address, long, length=len(long)) == 413
    assert raw(address, *(long[start : start + 65_536] for start in range(0, len(long), 65_536))) == 413
    assert raw(address, b"{", length=10**12) == 413
    full = json.dumps({"comment": "\N{GRINNING FACE}" * 20_000, "better": "\N{GRINNING FACE}" * 200_000})
    assert len(full) < BODY_BYTES
    me = rater(address)
    item = json.loads(asked(address, "/api/work", x_rater=me)[2])[0]["id"]
    assert asked(address, f"/api/items/{item}/notes", "PUT", json.loads(full), x_rater=me)[0] == 204


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\\ud800"}',
        b'{"name": "a", "\\udfff": 1}',
        b"[" * 100_000,
        b'{"name": ' + b"1" * 10_000 + b"}",
        b'{"name": NaN}',
        b"\xff\xfe",
    ],
    ids=["surrogate", "surrogate key", "deep", "digits", "nan", "bytes"],
)
def test_a_body_that_is_no_json_is_the_clients_mistake(place, body):
    _, _, address = place
    assert raw(address, body, length=len(body)) in {400, 422}
