"""What each stage does, and what it says of it; errors are the caller's."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from meditune.errors import DataError
from meditune.operate.loop.config import Config
from meditune.operate.loop.state import Outcome, State
from meditune.registry.registry import Registry

Done = tuple[Outcome, str]


def update(config: Config, _: State) -> Done:
    """New research."""
    from meditune.operate.literature import eutils
    from meditune.operate.literature import update as updating

    spec = config.update
    assert spec is not None, "only what is named is run"
    wanted = updating.Wanted(
        queries=tuple(spec.queries),
        files=spec.files,
        index=config.index,
        email=spec.email,
        eutils=eutils.URL,
        store=config.store,
        tests=tuple(spec.tests),
    )
    report = updating.update(spec.library, wanted)
    if report.failures:
        raise report.failures[-1]
    pairs = f", {len(report.pairs.examples):,} training pairs" if report.pairs else ""
    return "done", f"{sum(report.read.values()):,} articles, {len(report.retracted):,} retracted{pairs}"


def drift(config: Config, state: State) -> Done:
    """New requests held against the reference; a new alert makes the stages due that wait for one."""
    from meditune.operate.drift import channels, evidence, outbox
    from meditune.operate.drift.alerts import Policy
    from meditune.operate.drift.checking import check
    from meditune.operate.drift.monitor import Monitor
    from meditune.operate.drift.reading import Source
    from meditune.operate.drift.reference import load
    from meditune.operate.drift.watching import outbox_of, state_of

    spec = config.drift
    assert spec is not None, "only what is named is run"
    if config.store is None:
        raise DataError("The drift stage needs `store`: where the server keeps its answers.")
    place, reference = state_of(spec.reference), load(spec.reference)
    if _is_held(place):
        # The server watches by itself (meditune serve --drift), and tells those who are to know.
        monitor, said = Monitor.load(place, reference) if place.is_file() else Monitor(reference), "the server watches"
    else:
        found = check(Source(config.store), reference, place, Policy(least=spec.least), None, evidence.gather)
        monitor, said = found.monitor, f"{found.new:,} new requests"
        if spec.notify:
            news = outbox.messages(monitor.all_alerts, None, "")
            outbox.Outbox(outbox_of(spec.reference)).send(news, channels.from_environment())
    alerts = monitor.alerts()
    ids = [alert.id for alert in alerts]
    if set(ids) - set(state.alerts):
        hurried = {name for name in ("queue", "retrain") if (each := getattr(config, name)) and each.on_alert}
        state.waiting = sorted({*state.waiting, *hurried})
    state.alerts = ids
    if alerts:
        return "alert", "; ".join(f"{alert.signal} ({alert.severity}): {alert.said}" for alert in alerts)
    return "done", f"{said}, no alert"


def canary(config: Config, _: State) -> Done:
    """Canaries asked, and held against their first run."""
    from meditune.operate.drift import canaries, channels, outbox
    from meditune.operate.drift.watching import outbox_of

    spec = config.canary
    assert spec is not None, "only what is named is run"
    canaries.keep(canaries.ask(canaries.read(spec.questions), spec.url), spec.results)
    verdict = canaries.verdict(spec.results)
    if config.drift and config.drift.notify:
        news = outbox.messages([], verdict, "")
        outbox.Outbox(outbox_of(config.drift.reference)).send(news, channels.from_environment())
    return ("alert" if verdict["alert"] else "done"), str(verdict["said"])


def guard(config: Config, _: State) -> Done:
    """Whatever made answers worse is taken back."""
    from meditune.operate.release.guarding import guard as look

    results = config.canary.results if config.canary else None
    found = look(
        config.registry,
        config.store,
        config.drift.reference if config.drift else None,
        None,
        results if results and results.is_file() else None,
    )
    if found.taken_back:
        return "alert", f"{found.taken_back} was taken back, {found.served} is served: {'; '.join(found.why)}"
    return "done", "; ".join(found.why)


def queue(config: Config, state: State) -> Done:
    """What experts are asked next, without what the current version learnt and what they were asked before."""
    from meditune.operate.learn import gather
    from meditune.operate.learn.candidate import NothingToAskError

    spec = config.queue
    assert spec is not None, "only what is named is run"
    if config.store is None:
        raise DataError("The queue stage needs `store`: where the server keeps its answers.")
    registry = Registry(config.registry)
    current = registry.state().current
    known = (registry.place(current),) if current else ()
    done = tuple(queues(spec.folder))
    wanted = gather.Wanted(spec.budget, spec.strategy, known, done, index=config.index, embedding=spec.embedding)
    folder = spec.folder / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    state.waiting = [name for name in state.waiting if name != "queue"]
    try:
        found = gather.queue([config.store], folder, wanted)
    except NothingToAskError as error:
        return "done", f"nothing to ask experts: {error}"
    return "done", f"{len(found.chosen):,} for experts: meditune annotate serve {folder}"


def queues(folder: Path) -> list[Path]:
    """The queues that were made there, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def retrain(config: Config, state: State) -> Done:
    """The next version, where there is enough to learn from."""
    from meditune.operate.release import retrain as retraining
    from meditune.operate.release.gathering import Wanted
    from meditune.operate.release.splitting import Shares

    spec = config.retrain
    assert spec is not None, "only what is named is run"
    if Registry(config.registry).state().trial:
        return "done", "a version is being tried, so the next one waits"
    store = config.store
    labels = tuple(path for path in spec.labels if path.is_file())
    asked = tuple(queues(config.queue.folder)) if config.queue else ()
    literature = tuple(path for path in spec.literature if path.exists())
    wanted = Wanted(store, tuple(spec.trust), labels, asked, literature, config.index)
    if wanted.is_empty:
        return "done", "there is nothing to learn from yet"
    options = retraining.Options(
        wanted,
        Shares(spec.held_out, replay=spec.replay),
        tuple(spec.settings),
        None,
        spec.gate,
        spec.gate_new,
        spec.least,
        None,
        spec.then,
        spec.percent,
        or_anew=True,
    )
    outcome = retraining.retrain(config.registry, options, f"meditune retrain {config.registry}")
    if outcome.version is None:
        return "done", outcome.said[-1]
    state.waiting = [name for name in state.waiting if name != "retrain"]
    return ("done" if outcome.version.passed else "alert"), outcome.said[-1]


def promote(config: Config, _: State) -> Done:
    """A canary that stood its time becomes the version that is served."""
    from meditune.store.answers import SHADOW, Answers
    from meditune.store.opening import open_store

    spec = config.promote
    assert spec is not None, "only what is named is run"
    registry = Registry(config.registry)
    trial = registry.state().trial
    if trial is None or trial.mode != "canary":
        return "done", "no canary is out"
    if config.store is None:
        raise DataError("The promote stage needs `store`, where the canary's answers are counted.")
    since = datetime.fromisoformat(trial.since).timestamp()
    stood = time.time() - since
    answers = sum(
        each.model.rpartition(" ")[2].startswith(f"{trial.version}-")
        and each.time >= since
        and each.route != SHADOW
        and each.outcome in ("answered", "abstained")
        for _, each, _ in Answers(open_store(config.store)).in_order()
    )
    if stood < spec.after or answers < spec.answers:
        return "done", f"{trial.version} has stood for {stood / 3600:.1f} hours and given {answers:,} answers"
    registry.promote(trial.version, f"a canary for {stood / 3600:.1f} hours and {answers:,} answers")
    return "done", f"{trial.version} is served from now on"


def _is_held(place: Path) -> bool:
    """Whether somebody else goes on from this state at the moment."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(place.with_name(f".{place.name}.lock"), timeout=0):
            return False
    except Timeout:
        return True


BY_NAME = {
    "update": update,
    "drift": drift,
    "canary": canary,
    "guard": guard,
    "queue": queue,
    "retrain": retrain,
    "promote": promote,
}
