"""The page for whoever runs the server, in a real browser, and the figures that it shows."""

import pytest

from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.open_store import open_store
from tests.review.browser import chromium
from tests.serve.server import served
from tests.serve.test_releases import until
from tests.store.busy import MARKUP, fill

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def test_figures_need_a_key_with_the_scope_admin(store):
    keys = Keys(fill(store, 60))
    usual, admin = keys.create("Ann")[1], keys.create("Ops", ["admin"])[1]
    with served(store, Settings(keys_needed=True)) as server:
        assert server.ask("/admin").status == 200
        assert server.ask("/v1/admin/status").status == 401
        assert server.ask("/v1/admin/status", key=usual).error()["code"] == "missing_scope"
        assert server.ask("/v1/admin/status?hours=-1", key=admin).status == 400
        until(lambda: any(each["alive"] for each in server.ask("/v1/admin/status", key=admin).json["servers"]))
        told = server.ask("/v1/admin/status", key=admin).json
    assert told["answers"]["count"] == 60
    assert sum(told["answers"]["outcomes"].values()) == sum(part["count"] for part in told["over_time"]) == 60
    assert {each["model"]: each["answers"] for each in told["versions"]} == {"quickstart v1": 30, "quickstart v2": 30}
    assert told["feedback"]["up"] + told["feedback"]["down"] == 7
    assert {each["alive"] for each in told["servers"]} == {True, False}
    assert told["this_server"]["model"] == "tiny"


def test_a_server_tells_of_itself_and_leaves_no_trace_at_its_end(tmp_path):
    from meditune.store.overview import Notes

    notes = Notes(open_store(tmp_path))
    notes.put("server/killed", {"address": "http://127.0.0.1:8000/"})
    with served(tmp_path, address="http://127.0.0.1:8000/") as server:
        assert server.chat().status == 200
        until(lambda: any("killed" not in note.name for note in notes.all("server")))
        (note,) = notes.all("server")
        assert "killed" not in note.name
        assert (note.facts["model"], note.facts["version"]) == ("tiny", "v1")
        assert server.ask("/v1/admin/status").json["answers"]["seconds"]["p50"] > 0
    assert notes.all("server") == []


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.mark.browser
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_shows_them_to_everyone_and_runs_nothing_that_it_shows(browser, tmp_path, colours, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    keys = Keys(fill(tmp_path))
    usual, admin = keys.create("Ann")[1], keys.create("Ops", ["admin"])[1]
    with served(tmp_path, Settings(keys_needed=True)) as server:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
        problems, elsewhere = [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda sent: elsewhere.append(sent.url) if server.address not in sent.url else None)
        page.goto(f"{server.address}/admin#drift")
        for key in (usual, admin):
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Go on").click()
            if key == usual:
                page.get_by_text("it lacks the scope admin").wait_for()
        page.get_by_role("heading", name="3 alerts").wait_for()
        assert not page.locator("#trouble").is_visible()
        page.get_by_text("Questions that show it").click()
        assert MARKUP in page.locator("#alerts li").inner_text()
        assert MARKUP in page.locator("#drift").inner_text()
        assert page.title() == "Meditune: operation"
        shown = page.locator("#now").inner_text()
        assert "400" in shown
        assert "% up" in shown
        assert page.locator("#versions tbody tr").count() == 2
        assert page.locator("#drift tr.open").inner_text().startswith("Distance to the nearest")
        assert "5,122" in page.locator("#updates").inner_text()
        assert page.locator("#time svg rect").count() > 30
        page.locator("#time summary").first.click()
        assert page.locator("#time details[open] tbody tr").count() == 24
        page.get_by_text("Week", exact=True).click()
        page.wait_for_function("document.querySelector('#status').textContent.includes('Figures')")
        page.evaluate("for (const bar of document.querySelectorAll('.top')) bar.style.position = 'static'")
        found = axe.run(page, options=RULES).response["violations"]
        assert not [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert admin not in page.evaluate("JSON.stringify({...localStorage})")
        assert (problems, elsewhere) == ([], [])
        page.close()
