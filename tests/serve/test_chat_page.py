"""The chat page in a real browser against the real application."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from meditune.assistant.assistant import AssistantSettings
from meditune.retrieve.index import Index
from meditune.serve.settings import Settings
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests.assistants import ScriptedEngine, assistant_of, index_of
from tests.loopback_server import served

pytest.importorskip("lancedb")
pytestmark = pytest.mark.browser
MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
TEXTS = {
    "asthma.md": "# Asthma\n\nInhaled steroids help most people. Inhalers open the airways within minutes.\n",
    "gout.md": "# Gout\n\nColchicine calms an attack. Rest the joint.\n",
    f"evil{MARKUP.replace('/', '')}.md": f"# Lice {MARKUP}\n\nCombing removes lice {MARKUP} quickly.\n",
}
ASTHMA = "What helps people with asthma?"
SAID = "Inhaled steroids help most people. Inhalers open the airways within minutes. Zebras cure everything."


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return index_of(tmp_path_factory.mktemp("page"), TEXTS)


@contextmanager
def chat(tmp_path, index, said=SAID, settings=None, delay=0.0, likeliest="yes"):
    engine = ScriptedEngine(said, delay, likeliest)
    assistant = assistant_of(engine, index, AssistantSettings(nearest=-1.0))
    with served(tmp_path / "store", settings, assistant=assistant, index="some" if index else "") as server:
        server.saying = engine
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory, index):
    """For tests that change nothing about it."""
    with chat(tmp_path_factory.mktemp("server"), index) as running:
        yield running


def opened(browser, server, **options):
    context = browser.new_context(**options)
    page = context.new_page()
    page.problems, page.elsewhere = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda sent: page.elsewhere.append(sent.url) if server.address not in sent.url else None)
    page.goto(server.address)
    page.set_default_timeout(10_000)
    return page


def ask(page, question, ends=".foot"):
    before = page.locator(ends).count()
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    page.locator(ends).nth(before).wait_for()


def clean(page):
    assert not page.problems
    assert not page.elsewhere


def test_an_answer_with_its_sources_opened_at_the_sentence_that_says_it(browser, server):
    page = opened(browser, server)
    ask(page, ASTHMA)
    assert "Inhaled steroids help most people." in page.locator(".prose").inner_text()
    assert "Zebras" not in page.locator(".prose").inner_text()
    page.get_by_text("1 sentence left out").click()
    assert page.get_by_text("Zebras cure everything.").is_visible()
    page.get_by_role("button", name="Source 1: Asthma").nth(1).click()
    assert page.locator("#source mark").inner_text() == "Inhalers open the airways within minutes."
    assert page.locator("#source-title").inner_text() == "Asthma"
    page.keyboard.press("Escape")
    assert not page.locator("#source").is_visible()
    assert page.evaluate("document.activeElement.className") == "cite"
    assert page.locator(".foot").get_by_text("not a doctor's advice").is_visible()
    assert "Sentences checked by: lexical detector (compares words)" in page.locator(".foot").inner_text()
    assert "answer is complete" in page.locator("#status").inner_text()
    clean(page)


def test_sentences_come_while_the_model_writes_and_stop_ends_it(browser, tmp_path, index):
    with chat(tmp_path, index, f"{SAID} {'More of it follows here. ' * 200}", delay=0.02) as server:
        page = opened(browser, server)
        page.get_by_label("Your question").fill(ASTHMA)
        page.keyboard.press("Enter")
        page.get_by_text("Inhaled steroids help most people.").wait_for()
        assert page.locator(".reply").get_attribute("aria-busy") == "true"
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.", exact=True).first.wait_for()
        assert page.get_by_role("button", name="Ask", exact=True).is_visible()
        assert server.idle()
        clean(page)


def test_a_question_that_is_too_long_is_counted_refused_and_put_back_and_help_is_shown(browser, tmp_path, index):
    with chat(tmp_path, index, settings=Settings(message_characters=300)) as server:
        page = opened(browser, server)
        long = "I like to walk in the park with my dog. " * 10
        box = page.get_by_label("Your question")
        box.fill(long)
        assert page.locator("#length").inner_text() == "399 of 300 characters. This is too long; please shorten it."
        page.keyboard.press("Enter")
        page.get_by_text("This question is too long").wait_for()
        assert page.get_by_text("The message has 399 characters; this server takes at most 300.").is_visible()
        assert box.input_value() == long.strip()
        box.fill(f"{long} I have crushing chest pain and my left arm is numb.")
        page.keyboard.press("Enter")
        page.locator(".notice.urgent[role=alert]").wait_for()
        assert page.locator(".notice.urgent .call").first.inner_text().startswith("Call your emergency number")
        box.fill("Short again")
        assert not page.locator("#length").is_visible()
        page.problems = [each for each in page.problems if "400" not in each]
        clean(page)


def test_an_emergency_is_an_alert_and_no_model_is_asked(browser, server):
    page, asked = opened(browser, server), len(server.saying.prompts)
    ask(page, "My dad's mouth droops and he can't speak since ten minutes")
    banner = page.get_by_role("alert")
    assert "Signs of a stroke" in banner.inner_text()
    assert "Call your emergency number" in banner.locator(".call").inner_text()
    assert len(server.saying.prompts) == asked
    ask(page, "What is gout?")
    assert page.get_by_role("alert").count() == 1
    clean(page)


def test_a_refusal_shows_what_the_sources_say(browser, tmp_path, index):
    with chat(tmp_path, index, "Zebras are striped. Cheese is green.") as server:
        page = opened(browser, server)
        ask(page, ASTHMA)
        assert page.get_by_text("I'd rather not answer").is_visible()
        assert "Zebras" not in page.locator(".reply").inner_text()
        page.get_by_role("button", name="Asthma Inhaled steroids").click()
        assert "Inhaled steroids help most people." in page.locator("#source-text").inner_text()
        clean(page)


def test_without_an_index_nothing_is_promised_of_sources(browser, tmp_path):
    with chat(tmp_path, None) as server:
        page = opened(browser, server)
        assert page.locator("text=Answers come from the memory of a small model").is_visible()
        assert not page.locator("text=Answers are based on sources").is_visible()
        assert not page.locator("text=It answers with sources").is_visible()


def test_a_dose_is_bounded_and_yes_or_no_says_how_sure(browser, tmp_path, index):
    with chat(tmp_path, index, "Colchicine calms an attack. Take 2 tablets a day.") as server:
        page = opened(browser, server)
        ask(page, "How many colchicine tablets should I take for gout?")
        assert page.locator(".notice.limit").get_by_text("pharmacist").is_visible()
        assert "2 tablets" not in page.locator(".prose").inner_text()
        ask(page, "Does colchicine calm an attack of gout?")
        assert page.get_by_text("Probably yes").is_visible()
        assert page.get_by_text("not calibrated").is_visible()
        clean(page)


def test_thumbs_and_a_correction_are_stored(browser, server):
    page = opened(browser, server)
    ask(page, "Do inhaled steroids help people with asthma?")
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_label("Hard to understand").check()
    page.get_by_label("Unclear").check()
    page.get_by_label("What should the answer say?").fill("Say it simply.")
    page.get_by_role("button", name="Send").click()
    page.locator(".foot ~ div").get_by_text("Thank you. Your feedback was sent.").wait_for()
    id = page.evaluate("JSON.parse(localStorage['meditune.conversations'])[0].turns[0].events.at(-1)[1].id")

    def stored():
        (said,) = next(each for each in server.service.answers.exported() if each["id"] == id)["feedback"]
        return said["rating"], said["reasons"], said["correction"], said["decision"]

    assert stored() == ("down", ["unclear"], "Say it simply.", "maybe")
    page.get_by_role("button", name="Bad answer").click()
    assert page.get_by_label("What should the answer say?").input_value() == "Say it simply."
    page.reload()
    page.get_by_role("button", name="History").click()
    page.locator("#conversations .go").first.click()
    with page.expect_response("**/v1/feedback"):
        page.get_by_role("button", name="Bad answer").click()
    page.get_by_label("It could do harm").check()
    page.get_by_role("button", name="Send").click()
    page.locator(".foot ~ div").get_by_text("Thank you. Your feedback was sent.").wait_for()
    assert stored() == ("down", ["unsafe"], "Say it simply.", "maybe")
    page.get_by_role("button", name="Good answer").click()
    page.locator("[aria-pressed=true][title='Good answer']").wait_for()
    clean(page)


def test_conversations_stay_in_the_browser_and_can_be_deleted(browser, server):
    page = opened(browser, server)
    ask(page, ASTHMA)
    page.reload()
    assert page.locator("#welcome").is_visible()
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=ASTHMA).first.click()
    assert "Inhaled steroids" in page.locator(".prose").inner_text()
    page.locator(".cite").first.click()
    assert page.locator("#source mark").count() == 1
    page.keyboard.press("Escape")
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=f"Delete: {ASTHMA}").click()
    assert page.get_by_text("No conversations yet.").is_visible()
    assert page.evaluate("localStorage['meditune.conversations']") == "[]"
    clean(page)


def test_the_conversation_so_far_goes_along(browser, server):
    page = opened(browser, server)
    ask(page, ASTHMA)
    ask(page, "Does it help children?")
    assert f"{ASTHMA} Does it help children?" in server.saying.prompts[-1]
    page.get_by_role("button", name="New").click()
    ask(page, "Does it help children?")
    assert ASTHMA not in server.saying.prompts[-1]


def test_the_style_is_sent_and_remembered(browser, server):
    page = opened(browser, server)
    page.get_by_text("Expert").click()
    with page.expect_request("**/v1/ask") as sent:
        ask(page, ASTHMA)
    assert sent.value.post_data_json["style"] == "expert"
    page.reload()
    assert page.get_by_label("Expert").is_checked()


def test_markup_in_question_answer_source_and_file_name_stays_text(browser, tmp_path, index):
    said = f"Combing removes lice {MARKUP} quickly."
    with chat(tmp_path, index, said) as server:
        page = opened(browser, server)
        ask(page, f"What removes lice? {MARKUP}")
        assert MARKUP in page.locator(".asked").inner_text()
        assert page.locator(".reply img, .reply script, .asked img").count() == 0
        page.locator(".cite, .quote").first.click()
        page.keyboard.press("Escape")
        for summary in page.locator(".others summary").all():
            summary.click()
        for chip in page.locator(".chip, .quote").all():
            chip.click()
            assert page.locator("#source img, #source script").count() == 0
            page.keyboard.press("Escape")
        page.get_by_role("button", name="History").click()
        assert page.locator("#history img").count() == 0
        assert page.title() == "Meditune"
        clean(page)


def test_a_source_with_a_script_for_an_address_gets_no_link(browser, server):
    page = opened(browser, server)
    found = page.evaluate(
        "async () => { const { safe } = await import('/page/dom.js');"
        "return ['javascript:alert(1)', 'data:text/html,x', 'https://a.example/b'].map(safe) }"
    )
    assert found == ["", "", "https://a.example/b"]


def answered_with(page, status, headers=None, message="No."):
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": "x"}})
    given = {"content-type": "application/json", **(headers or {})}
    page.route("**/v1/ask", lambda route: route.fulfill(status=status, headers=given, body=body))


def test_a_busy_server_is_said_with_when_to_try_again(browser, server):
    page = opened(browser, server)
    answered_with(page, 429, {"retry-after": "2"})
    ask(page, ASTHMA, ".notice.error")
    assert page.get_by_text("Try again in 2 seconds.").is_visible()
    button = page.locator(".notice.error button")
    assert button.is_disabled()
    page.unroute("**/v1/ask")
    page.get_by_role("button", name="Try again", exact=True).click()
    page.locator(".foot").wait_for()
    assert page.locator(".turn").count() == 1


def test_being_offline_and_a_server_that_fails_are_said_in_words(browser, server):
    page = opened(browser, server)
    page.context.set_offline(True)
    ask(page, ASTHMA, ".notice.error")
    assert page.get_by_text("You are offline").is_visible()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.locator(".foot").wait_for()
    answered_with(page, 500)
    ask(page, ASTHMA, ".notice.error")
    assert page.get_by_text("The server couldn't finish the answer.").is_visible()


def test_an_answer_that_takes_too_long_after_its_first_event_is_said_in_words(browser, tmp_path, index):
    with chat(tmp_path, index, settings=Settings(answer_s=1.5), delay=0.2) as server:
        page = opened(browser, server)
        ask(page, ASTHMA, ".notice.error")
        assert page.get_by_text("It took too long").is_visible()


def test_a_question_that_is_too_long_is_said_by_the_server(browser, server):
    page = opened(browser, server)
    ask(page, "gout pain " * 1500, ".notice.error")
    assert page.get_by_text("too long").first.is_visible()


def test_a_key_is_asked_for_and_kept_for_the_tab(browser, tmp_path, index):
    key = Keys(SQLiteDatabase(tmp_path / "store")).create("page")[1]
    with chat(tmp_path, index, settings=Settings(keys_needed=True)) as server:
        page = opened(browser, server)
        page.get_by_label("Your question").fill(ASTHMA)
        page.keyboard.press("Enter")
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Continue").click()
        page.locator(".foot").wait_for()
        assert page.locator(".turn").count() == 1
        assert key not in json.dumps(page.evaluate("({...localStorage})"))


NO_STORAGE = """for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });"""


def test_a_browser_that_blocks_site_data_can_ask_and_open_the_operators_page(browser, tmp_path, index):
    key = Keys(SQLiteDatabase(tmp_path / "store")).create("page", ["generate", "admin"])[1]
    with chat(tmp_path, index, settings=Settings(keys_needed=True)) as server:
        page = opened(browser, server)
        page.add_init_script(NO_STORAGE)
        page.reload()
        page.get_by_label("Your question").fill(ASTHMA)
        page.keyboard.press("Enter")
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Continue").click()
        page.locator(".foot").wait_for()
        page.goto(f"{server.address}/admin")
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("Updated at").wait_for()


@pytest.mark.parametrize(("colours", "width"), [("light", 1280), ("dark", 360)])
def test_wcag_and_width_in_every_state(browser, server, colours, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    page = opened(
        browser, server, viewport={"width": width, "height": 800}, color_scheme=colours, reduced_motion="reduce"
    )

    def fine(state):
        # What scrolls by under a bar is smaller for a moment only.
        page.evaluate("for (const bar of document.querySelectorAll('.top, .dock')) bar.style.position = 'static'")
        found = axe.run(page, options=rules).response["violations"]
        told = [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found]
        assert not told, (state, told)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state

    fine("welcome")
    ask(page, "Does asthma go away?")
    page.get_by_role("button", name="Bad answer").click()
    page.locator(".correct").wait_for()
    fine("answer and correction form")
    page.locator(".cite").first.click()
    fine("source")
    page.keyboard.press("Escape")
    ask(page, "I want to kill myself")
    ask(page, "How many tablets of ibuprofen should I take?")
    ask(page, "Who won the world cup?")
    fine("urgent, bounded and declined")
    page.get_by_role("button", name="History").click()
    fine("history")
    page.keyboard.press("Escape")
    answered_with(page, 429, {"retry-after": "30"})
    ask(page, ASTHMA, ".notice.error")
    fine("error")


def test_everything_works_by_keyboard(browser, server):
    page = opened(browser, server)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.type(ASTHMA)
    page.keyboard.press("Enter")
    page.locator(".foot").wait_for()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "cite":
            break
    page.keyboard.press("Enter")
    assert page.locator("#source").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "cite"


def test_colours_can_be_chosen_and_stay(browser, server):
    page = opened(browser, server, color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_server_gives_the_page_and_nothing_beside_it(server):
    page = server.ask("/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "style=" not in page.text
    assert "onclick" not in page.text
    assert server.ask("/page/chat.js").headers["content-type"].startswith("text/javascript")
    for path in ("/page/..%2fapp.py", "/page/index.py", "/page/%2e%2e/settings.py"):
        assert server.ask(path).status == 404
