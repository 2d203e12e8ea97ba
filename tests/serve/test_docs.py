"""The API's description: as a document, and as a page that loads nothing from elsewhere."""

import re


def test_the_page_shows_every_route_and_object_and_loads_nothing(server):
    page = server.ask("/docs")
    assert page.headers["content-type"].startswith("text/html")
    spec = server.ask("/openapi.json").json
    for path in spec["paths"]:
        assert path in page.text
    for name in spec["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert not re.search(r"https?://|<script|\son\w+=|\sstyle=", page.text)
    assert re.findall(r'(?:src|href)="([^#"]+)"', page.text) == ["/docs/docs.css", "/openapi.json"]
    style = server.ask("/docs/docs.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text


def test_the_document_has_openais_errors(server):
    spec = server.ask("/openapi.json").json
    for methods in spec["paths"].values():
        for told in methods.values():
            assert "422" not in told["responses"]
            assert told["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in spec["components"]["schemas"]
    assert spec["components"]["schemas"]["ChatBody"]["additionalProperties"] is False
