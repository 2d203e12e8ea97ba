"""What licences ask for and forbid, as their own texts say, and what a set that mixes several must keep to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNKNOWN = "unknown"
NO_ADVICE = "This sums up what the licences' texts say. It is no legal advice."


@dataclass(frozen=True)
class Licence:
    """A licence by what it asks of whoever passes data on."""

    hub: str
    """The hub's name for it; `other` where it has none."""
    link: str
    attribution: bool = False
    notice: bool = False
    share_alike: bool = False
    non_commercial: bool = False
    no_derivatives: bool = False
    no_sharing: bool = False


_PHYSIONET = "https://physionet.org/content/mimiciii/view-license/1.4/"
_KNOWN: tuple[tuple[str, Licence], ...] = (
    (r"cc0(-1\.0)?", Licence("cc0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/")),
    (r"mit( licence| license)?", Licence("mit", "https://opensource.org/license/mit", notice=True)),
    (
        r"apache[- ](licence |license )?2\.0",
        Licence("apache-2.0", "https://apache.org/licenses/LICENSE-2.0", notice=True),
    ),
    (r"bsd-3-clause", Licence("bsd-3-clause", "https://opensource.org/license/bsd-3-clause", notice=True)),
    (r"odc-by", Licence("odc-by", "https://opendatacommons.org/licenses/by/1-0/", attribution=True)),
    (r"odbl", Licence("odbl", "https://opendatacommons.org/licenses/odbl/1-0/", attribution=True, share_alike=True)),
    (r"physionet credentialed.*", Licence("other", _PHYSIONET, attribution=True, no_sharing=True)),
)
_CREATIVE_COMMONS = re.compile(r"cc[- ]by((?:[- ](?:nc|sa|nd))*)(?:[- ]([1-4]\.\d))?")


def known(text: str) -> Licence | None:
    """The licence that a text names ("CC BY 4.0", "cc-by-sa-4.0", "MIT"), or None."""
    name = " ".join(text.casefold().split())
    for pattern, licence in _KNOWN:
        if re.fullmatch(pattern, name):
            return licence
    found = _CREATIVE_COMMONS.fullmatch(name)
    if not found:
        return None
    parts, version = re.findall("nc|sa|nd", found[1]), found[2] or "4.0"
    short = "-".join(["by", *parts])
    return Licence(
        f"cc-{short}-{version}",
        f"https://creativecommons.org/licenses/{short}/{version}/",
        attribution=True,
        share_alike="sa" in parts,
        non_commercial="nc" in parts,
        no_derivatives="nd" in parts,
    )


def hub_names(texts: Iterable[str]) -> list[str]:
    """The hub's names of the licences, each once; `unknown` for one that isn't known here."""
    found = [known(text) for text in texts]
    return list(dict.fromkeys(licence.hub if licence else UNKNOWN for licence in found))


def demands(licences: Mapping[str, Iterable[str]]) -> list[str]:
    """What a set must keep to whose sources (name -> the licences of its rows) are passed on together."""
    named = [(source, text, known(text)) for source, texts in licences.items() for text in texts]

    def having(trait: str) -> str:
        return ", ".join(f"{source} ({text})" for source, text, licence in named if licence and getattr(licence, trait))

    lines = []
    for trait, sentence in (
        ("no_sharing", "Rows may not be passed on to anyone who hasn't signed the agreement: {}."),
        ("notice", "The copyright notice and the licence's text stay with the data: {}."),
        ("attribution", "The authors and the licence are named, and changes said: {}."),
        ("non_commercial", "The data may not be used commercially: {}."),
        ("no_derivatives", "Changed versions may not be passed on; splits and cleaned rows may be such: {}."),
        ("share_alike", "What is made of the data is passed on under the same licence (share-alike): {}."),
    ):
        if sources := having(trait):
            lines.append(sentence.format(sources))
    found = [licence for _, _, licence in named if licence]
    alike = sorted({licence.hub for licence in found if licence.share_alike})
    narrower = sorted({licence.hub for licence in found if licence.non_commercial and licence.hub not in alike})
    if len(alike) > 1 or (alike and narrower):
        both = " and ".join([*alike, *narrower])
        lines.append(f"No one licence serves the mixed set: {both} ask for different ones, so their rows stay apart.")
    unstated = ", ".join(f"{source} ({text})" for source, text, licence in named if licence is None)
    if unstated:
        lines.append(
            f"No licence that is known here; whether and how they may be passed on must be looked up: {unstated}."
        )
    return lines
