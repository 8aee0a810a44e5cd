"""Bad addresses, hyperparameters, bodies and queries, each with the answer that is right for it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.bad_files import good_image, good_pairs, zipped
from benchmarks.bad_inputs_client import Answer, Case, Part, Platform, Send, multipart


def _import(url: Any) -> Send:
    return lambda platform: platform.post_json("datasets/", {"name": "bad input", "source_url": url})


def urls() -> list[Case]:
    """Bad addresses to import a dataset from, and servers that misbehave."""
    inside = "inside a network"
    refused = [
        ("file:///etc/passwd", "http and https"),
        ("ftp://example.org/a.zip", "http and https"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "http and https"),
        ("javascript:alert(1)", "http and https"),
        ("http://127.0.0.1:16639/", inside),
        ("http://localhost/a.zip", inside),
        ("http://LOCALHOST./a.zip", inside),
        ("http://a.localhost/a.zip", inside),
        ("http://169.254.169.254/latest/meta-data/", inside),
        ("http://10.0.0.1/a.zip", inside),
        ("http://192.168.1.1/a.zip", inside),
        ("http://100.64.0.1/a.zip", inside),
        ("http://0.0.0.0/a.zip", inside),
        ("http://2130706433/a.zip", inside),
        ("http://0x7f000001/a.zip", inside),
        ("http://0177.0.0.1/a.zip", inside),
        ("http://127.1/a.zip", inside),
        ("http://[::1]/a.zip", inside),
        ("http://[::ffff:127.0.0.1]/a.zip", inside),
        ("http://[fe80::1%25eth0]/a.zip", "."),
        ("http://①②⑦.0.0.1/a.zip", inside),
        ("http://user:secret@example.org/a.zip", "user name"),
        ("http:///a.zip", "no server"),
        ("https://", "no server"),
        ("http://example.org:0/a.zip", "port"),
        ("http://example.org:99999/a.zip", "not a valid URL"),
        ("http://example.org\\@127.0.0.1/", "not a valid URL"),
        ("http://example.org/a\r\nHost: evil", "not a valid URL"),
        ("http://example.org/\0", "Null"),
        ("http://[::1", "not a valid URL"),
        ("not a url", "not a valid URL"),
        ("   ", "blank"),
        ("http://example.org/" + "a" * 3000, "2000"),
        (["http://example.org/"], "string"),
        (7, "http and https"),
    ]
    cases = [Case("URL", _shown(url), _import(url), (400,), "", says) for url, says in refused]
    later = [("http://no-such-server.invalid/a.zip", "no server named"), (f"http://{'a' * 300}.org/a.zip", ".")]
    cases += [Case("URL", _shown(url), _import(url), (201,), "error", says) for url, says in later]
    served = [
        ("to-metadata", "a server that redirects to 169.254.169.254", inside),
        ("to-file", "a server that redirects to file:///etc/passwd", "http and https"),
        ("loop", "a server that redirects without end", "redirects more than"),
        ("page", "a server that sends a web page", "web page"),
        ("short", "a server that promises more than it sends", "broke off"),
        ("empty", "a server that sends nothing", "empty file"),
        ("packed", "a server that sends a gzip bomb as Content-Encoding", "compressed form"),
        ("large", "a server that sends 3 MB where 1 MB is allowed", "larger than"),
        ("endless", "the same without saying the length", "larger than"),
        ("text", "a server that sends text", "not a ZIP"),
        ("missing", "a server that answers 404", "no such file"),
        ("error", "a server that answers 500", "cannot deliver"),
    ]
    for path, what, says in served:
        send = lambda platform, path=path: _import(platform.address + path)(platform)  # noqa: E731 (of this turn of the loop)
        cases.append(Case("URL", what, send, (201,), "error", says, setting="private"))
    return cases


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= 60 else f"{text[:50]}… ({len(text):,} characters)"


def hyperparameters() -> list[Case]:
    """Bad hyperparameters of a training."""
    bad: list[tuple[Any, str]] = [
        ({"epochs": "many"}, "whole number"),
        ({"epochs": 0}, "too small"),
        ({"epochs": -3}, "too small"),
        ({"epochs": 10**30}, "too large"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"epochs": [3]}, "whole number"),
        ({"epochs": {"$gt": 0}}, "whole number"),
        ({"learning_rate": "0.1"}, "number"),
        ({"learning_rate": 5}, "too large"),
        ({"learning_rate": 0}, "too small"),
        ({"learning_rate": -1}, "too small"),
        ({"learning_rate": 10**400}, "too large"),
        ({"validation_fraction": 0.9}, "too large"),
        ({"batch_size": 100_000}, "too large"),
        ({"patch_size": 33}, "multiple of 16"),
        ({"patch_size": 16}, "too small"),
        ({"patch_size": 4096}, "too large"),
        ({"seed": -1}, "too small"),
        ({"time_budget_seconds": 10**9}, "too large"),
        ({"architecture": "transformer9000"}, "not one of"),
        ({"architecture": ["unet"]}, "text"),
        ({"encoder": "../../etc/passwd"}, "not one of"),
        ({"architecture": "linknet", "encoder": "mit_b0"}, "."),
        ({"loss": "mse"}, "not one of"),
        ({"encoder_weights": "http://example.org/w.pth"}, "not one of"),
        ({"augmentation": {"flip": True}}, "text"),
        ({"no_such_thing": 1}, "no such hyperparameter"),
        ({"\ud800": 1}, "printable"),
        ({"x" * 5000: 1}, "at most 50"),
        ({f"name{n}": n for n in range(20_000)}, "at most 50"),
        ([1, 2], "JSON object"),
        ("unet", "JSON object"),
        (7, "JSON object"),
    ]
    cases = []
    for values, says in bad:
        send: Send = lambda platform, values=values: platform.train(values)  # type: ignore[misc]  # noqa: E731 (of this turn of the loop)
        cases.append(Case("hyperparameters", _shown(json.dumps(values)), send, (400,), "", says))
    numbers = [("NaN", "JSON"), ("Infinity", "JSON"), ("1e400", "finite"), ("1" * 5000, "JSON")]
    for number, says in numbers:
        body = f'{{"name": "x", "dataset": 1, "hyperparameters": {{"learning_rate": {number}}}}}'.encode()
        send = _raw(body, "application/json")
        cases.append(Case("hyperparameters", f"learning_rate: {_shown(number)}", send, (400,), "", says))
    return cases


def _model(**changes: Any) -> Send:
    return lambda platform: platform.train({}, **changes)


def _raw(body: bytes, content_type: str | None, path: str = "models/") -> Send:
    headers = {} if content_type is None else {"Content_Type": content_type}
    return lambda platform: platform.send("POST", path, body, **headers)


def bodies() -> list[Case]:
    """Bad bodies, forms, names and ids."""

    def case(what: str, send: Send, says: str, *status: int, final: str = "", **more: Any) -> Case:
        return Case("body", what, send, status or (400,), final, says, **more)

    def dataset(**fields: Any) -> Send:
        return lambda platform: platform.post_json("datasets/", {"source_url": "http://x.invalid/a.zip", **fields})

    archive = zipped(good_pairs(2))

    def parts(*given: Part) -> Send:
        return lambda platform: platform.post_parts("datasets/", list(given))

    named: Part = ("name", None, b"bad input")
    whole: Part = ("archive", "a.zip", archive)
    form, headers = multipart([named, whole])
    cases = [
        case("not JSON", _raw(b"{hello", "application/json"), "JSON"),
        case("empty body", _raw(b"", "application/json"), "required"),
        case("JSON that is no UTF-8", _raw(b'{"name": "\xff\xfe"}', "application/json"), "JSON"),
        case("charset=zlib", _raw(b"x", "application/json; charset=zlib"), ".", over_http=True),
        case("charset=hex with a query", _raw(b"x", "application/json; charset=hex", "models/?a=%41"), ".", over_http=True),
        case("charset=utf-16", _raw('{"name": "x"}'.encode("utf-16"), "application/json; charset=utf-16"), "."),
        case("100,000 nested lists", _raw(b"[" * 100_000, "application/json"), "brackets"),
        case("6 MB of JSON", _raw(b'{"name": "' + b"x" * 6_000_000 + b'"}', "application/json"), "5 MB", 413),
        case("a JSON list", _raw(b"[1, 2]", "application/json"), "dictionary"),
        case("a JSON number", _raw(b"7", "application/json"), "dictionary"),
        case("JSON null", _raw(b"null", "application/json"), "No data"),
        case("text/xml", _raw(b"<x/>", "text/xml"), "media type", 415),
        case("no content type", _raw(b"junk", None), ".", 400, 415),
        case("multipart without a boundary", _raw(form, "multipart/form-data", "datasets/"), "boundary"),
        case("multipart with another boundary", _raw(form, "multipart/form-data; boundary=x", "datasets/"), "."),
        case("multipart cut off", _raw(form[:300], headers["Content-Type"], "datasets/"), "."),
        case("JSON to an endpoint of files", _raw(b"{}", "application/json", "inferences/"), "media type", 415),
        case("no fields", lambda platform: platform.post_json("models/", {}), "required"),
        case("form field of 6 MB", parts(("name", None, b"x" * 6_000_000), whole), "5 MB", 413),
        case("1,500 form fields", parts(named, *[(f"f{n}", None, b"x") for n in range(1500)]), "."),
        case("150 files", parts(named, *[(f"f{n}", "a.zip", b"x") for n in range(150)]), "."),
        case("archive as text, not as a file", parts(named, ("archive", None, archive)), "archive"),
        case("archive and source_url", parts(named, whole, ("source_url", None, b"http://x.org/")), "one of these"),
        case("two archives, the second broken", parts(named, whole, ("archive", "b.zip", b"junk")), "not a ZIP"),
        case("name missing", parts(whole), "required"),
        case("name of blanks", dataset(name="   "), "blank"),
        case("name of invisible characters", dataset(name="\u200b\u202e\u2060"), "needed"),
        case("name with NUL", dataset(name="a\0b"), "Null"),
        case("name with half a surrogate pair", dataset(name="a\ud800b"), "."),
        case("name of 5,000 characters", dataset(name="x" * 5000), "200"),
        case("name that is null", dataset(name=None), "null"),
        case("name that is a list", dataset(name=["x"]), "string"),
        case("name that is an object", dataset(name={"a": 1}), "string"),
        case("description with NUL", dataset(name="x", description="a\0b"), "Null"),
        case("description of 20,000 characters", dataset(name="x", description="x" * 20_000), "10000"),
        case("name of emoji (allowed)", lambda p: p.upload(archive, title="🧠 脳 Ω"), "", 201, final="ready"),
        case("name with markup (allowed)", lambda p: p.upload(archive, title="<script>alert(1)</script>"), "", 201, final="ready"),
        case("model name with NUL", _model(name="a\0b"), "Null"),
        case("model name of control characters", _model(name="\x01\x02"), "needed"),
    ]  # fmt: skip
    ids: list[tuple[Any, str]] = [
        (10**30, "exist"),
        (-1, "exist"),
        (0, "exist"),
        ("abc", "Incorrect type"),
        ("1 OR 1=1", "Incorrect type"),
        (None, "null"),
        ([1], "Incorrect type"),
        ({"id": 1}, "Incorrect type"),
        (True, "Incorrect type"),
        ("9" * 5000, "."),
        ("1\0", "."),
    ]
    for value, says in ids:
        cases.append(case(f"dataset: {_shown(value)}", _model(dataset=value), says))
        if isinstance(value, int | str):
            send = lambda p, value=value: p.post_parts(  # noqa: E731 (of this turn of the loop)
                "inferences/", [("model", None, str(value).encode()), ("image", "a.png", good_image())]
            )
            cases.append(case(f"inference with model: {_shown(value)}", send, "Incorrect" if value is True else says))
    cases.append(case("dataset: 1e400", _raw(b'{"name": "x", "dataset": 1e400}', "application/json"), "."))
    return cases


def queries() -> list[Case]:
    """Bad query strings and paths."""

    def get(path: str, says: str, *status: int) -> Case:
        def send(platform: Platform) -> Answer:
            return platform.get(path.format(d=platform.dataset, m=platform.model, i=platform.inference))

        return Case("query", f"GET {_shown(path)}", send, status, "", says)

    cases = [
        get(f"datasets/?page={page}", "page", 404) for page in ("0", "-1", "abc", "9" * 30, "9" * 5000, "%00", "%C2%B2")
    ]
    cases += [get(f"datasets/?{query}", "", 200) for query in ("page_size=1000000000", "page_size=-5", "page_size=abc")]
    cases += [get(f"{kind}/?ordering=password,-secret__x", "", 200) for kind in ("datasets", "models", "inferences")]
    cases += [get(f"{kind}/?status=nonsense", "valid", 400) for kind in ("datasets", "models", "inferences")]
    cases += [get(f"models/?dataset={value}", "valid", 400) for value in ("999999", "-1", "abc", "1" + "0" * 30)]
    cases += [get(f"inferences/?{name}=7777777", "valid", 400) for name in ("model", "batch")]
    cases += [get(f"datasets/?search={text}", ".", 400) for text in ("%00",)]
    cases += [get("models/?dataset=%00", "Null", 400), get("datasets/{d}/samples/?search=%00", "Null", 400)]
    cases += [
        get(f"datasets/{{d}}/samples/?{query}", "", 200) for query in ("split=%00", "ordering=position", "ordering=x")
    ]
    cases += [get("datasets/{d}/samples/?split=nonsense&search=%F0%9F%A7%A0", "", 200)]
    for value in ("abc", "-1", "1000000", "1.5", "%C2%B2", "9" * 5000, "%00"):
        cases.append(get(f"inferences/{{i}}/overlay/?slice={value}", "There is no slice", 400))
    for value in ("7", "-1", "nan", "inf", "abc", "%00"):
        cases.append(get(f"inferences/{{i}}/overlay/?opacity={value}", "from 0 to 1", 400))
    for path in ("datasets/0/", "datasets/999999/", "datasets/abc/", "datasets/-1/", f"datasets/{'9' * 18}/"):
        cases.append(get(path, "", 404))
    cases += [
        get(f"models/{'9' * 30}/", "", 404),
        get("models/1%00/", "", 404),
        get("datasets/../../etc/passwd", "", 404),
    ]
    cases += [
        get("datasets/{d}/samples/999999/image/", "", 404),
        get("models/{m}/cases/999999/overlay/", "storage", 404),
    ]
    cases += [
        get("/static/../../manage.py", "", 404),
        get("/static/%2e%2e/%2e%2e/manage.py", "", 400, 404),
        get("/static/%00", "", 400, 404),
    ]
    return cases  # fmt: skip
