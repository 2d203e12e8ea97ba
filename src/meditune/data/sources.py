"""The known data sources, the terms of their licences, and the lookup and download of their files."""

from __future__ import annotations

import difflib
import errno
import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.readers import claims, evidence_inference, liveqa, medquad, mimic, pubmedqa
from meditune.data.readers.medquad import contents_sha256
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import cache_folder, disk_full
from meditune.progress import Progress

Reader = Callable[[Path, Rejects], Iterator[Example]]


@dataclass(frozen=True)
class Download:
    """A file to download from a fixed commit, so that changes to the publisher's branch don't change the data."""

    url: str
    filename: str
    sha256: str | None = None
    """SHA-256 of the file's bytes; without it and without `contents_sha256`, only the length is checked"""
    contents_sha256: str | None = None
    """SHA-256 of the XML files in a zip (`medquad.contents_sha256`): GitHub may compress the same files again"""


@dataclass(frozen=True)
class Source:
    """A data set that a recipe can name."""

    name: str
    title: str
    licence: str
    homepage: str
    files: tuple[str, ...]
    """File names or patterns in the source's folder; one existing file is enough"""
    reader: Reader | None
    """Turns the files into Examples; None for plain text"""
    download: tuple[Download, ...] = ()
    """All files are downloaded and checked before the first one is renamed, so a partial download is never used"""
    how: str = ""
    """How to get the files if they can't be downloaded automatically"""
    citation: str = ""
    """The citation that the publisher asks for"""
    restricted: bool = False
    """True if the licence forbids sharing rows (`data/read_sources.py`)"""
    packaged: Path | None = None
    """Path of the file if it is included with Meditune"""


_MEDQUAD_COMMIT = "7e94c7b336f1f8e010c03091df691c8bea014399"
"""The commit that contains every XML file of the published collection"""


def _github(repository: str, commit: str, path: str, sha256: str) -> Download:
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    return Download(url, path.rpartition("/")[2], sha256)


def _at_levels(*names: str) -> tuple[str, ...]:
    """Return patterns for files of these names in the source's folder, or in folders one or two levels below it."""
    return tuple(f"{level}{name}" for level in ("", "*/", "*/*/") for name in names)


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="pubmedqa",
            title="PubMedQA: research questions with abstracts and yes/no/maybe decisions",
            licence=pubmedqa.LICENCE,
            homepage="https://github.com/pubmedqa/pubmedqa",
            citation="Jin et al. (2019), PubMedQA: A Dataset for Biomedical Research Question Answering. EMNLP-IJCNLP. "
            "https://doi.org/10.18653/v1/D19-1259",
            files=(
                "ori_pqal.json",
                "ori_pqaa.json",
                "ori_pqau.json",
                "pqa_*/*.parquet",
                "pqa_*.parquet",
                "pqa_*.jsonl",
            ),
            reader=pubmedqa.read,
            download=(
                _github(
                    "pubmedqa/pubmedqa",
                    "3e7616d288b52edaf38f5fd5c59821c7806bde86",
                    "data/test_ground_truth.json",
                    "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
                ),
                _github(
                    "pubmedqa/pubmedqa",
                    "1f00b98d5cc626844bf8c4ca513b6e62c40071ec",
                    "data/ori_pqal.json",
                    "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
                ),
            ),
        ),
        Source(
            name="medquad",
            title="MedQuAD: questions and answers from twelve NIH sites",
            licence=medquad.LICENCE,
            homepage="https://github.com/abachaa/MedQuAD",
            citation="Ben Abacha and Demner-Fushman (2019), A Question-Entailment Approach to Question Answering. BMC "
            "Bioinformatics 20:511. https://doi.org/10.1186/s12859-019-3119-4",
            files=("*_QA*/*.xml", "*/*_QA*/*.xml", "MedQuAD*.zip", "medquad*.zip"),
            reader=medquad.read,
            download=(
                Download(
                    f"https://github.com/abachaa/MedQuAD/archive/{_MEDQUAD_COMMIT}.zip",
                    f"MedQuAD-{_MEDQUAD_COMMIT[:7]}.zip",
                    contents_sha256="3eac49028e3bba522f39734b416ec9ea5ce420864d24a0bf37762a90e67e1ef8",
                ),
            ),
        ),
        Source(
            name="liveqa",
            title="LiveQA-Medical, TREC 2017: consumers' health questions with reference answers",
            licence=liveqa.LICENCE,
            homepage="https://github.com/abachaa/LiveQA_MedicalTask_TREC2017",
            citation="Ben Abacha et al. (2017), Overview of the Medical Question Answering Task at TREC 2017 LiveQA. "
            "TREC 2017. https://trec.nist.gov/pubs/trec26/papers/Overview-QA.pdf",
            files=("TREC-2017-*.xml", "*/TREC-2017-*.xml", "*/*/TREC-2017-*.xml", "LiveQA*.zip", "liveqa*.zip"),
            reader=liveqa.read,
            download=(
                _github(
                    "abachaa/LiveQA_MedicalTask_TREC2017",
                    "e784f2d28b6a174e9a8d9f740876bdaccbd705af",
                    "TestDataset/TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml",
                    "f6384fcf03e9b1bd0d9a15f6ea1a1aafc9491082e63fef0922ae2d6bc451805b",
                ),
                _github(
                    "abachaa/LiveQA_MedicalTask_TREC2017",
                    "d6c0998610d7e775100eb6482f89ea6120fa139c",
                    "TestDataset/TREC-2017-LiveQA-Medical-Test.xml",
                    "be321b6708d1cfffe7117ac36fb98c88ad0b457185b48cc6cec80fbf810e8046",
                ),
                _github(
                    "abachaa/LiveQA_MedicalTask_TREC2017",
                    "40fe188f25263df9e0ee907859e10f737477d259",
                    "TrainingDatasets/TREC-2017-LiveQA-Medical-Train-1.xml",
                    "04b307031ab9d2ff0b2e8593f6c7e2313aa86e3da25dabd85ffc051ea431b4d7",
                ),
                _github(
                    "abachaa/LiveQA_MedicalTask_TREC2017",
                    "40fe188f25263df9e0ee907859e10f737477d259",
                    "TrainingDatasets/TREC-2017-LiveQA-Medical-Train-2.xml",
                    "7f7d0466829227cfd830fd8d83d99064868f927b943079ae3c4fffe18dbde47b",
                ),
            ),
        ),
        Source(
            name="mimic",
            title="MIMIC-III clinical notes (your own credentialed copy)",
            licence=mimic.LICENCE,
            homepage="https://physionet.org/content/mimiciii/",
            citation="Johnson et al. (2016), MIMIC-III, a freely accessible critical care database. Scientific Data "
            "3:160035. https://doi.org/10.1038/sdata.2016.35",
            files=("NOTEEVENTS.csv", "NOTEEVENTS.csv.gz", "noteevents.csv", "noteevents.csv.gz"),
            reader=mimic.read,
            restricted=True,
            how="MIMIC-III can't be downloaded without credentials: complete the training and sign the data use "
            "agreement at https://physionet.org/content/mimiciii/, then fetch NOTEEVENTS.csv.gz there",
        ),
        Source(
            name=evidence_inference.SOURCE,
            title="Evidence Inference 2.0: experts' judgements of the results of randomized trials, as claims",
            licence=evidence_inference.LICENCE,
            homepage="https://github.com/jayded/evidence-inference",
            citation="DeYoung et al. (2020), Evidence Inference 2.0: More Data, Better Models. BioNLP. "
            "https://doi.org/10.18653/v1/2020.bionlp-1.13",
            files=_at_levels("prompts_merged.csv", "prompts.jsonl"),
            reader=evidence_inference.read,
            how="Download https://evidence-inference.ebm-nlp.com/v2.0.tar.gz, unpack it",
        ),
        Source(
            name=claims.SCIFACT,
            title="SciFact: scientific claims with abstracts that support or refute them",
            licence=claims.LICENCES[claims.SCIFACT],
            homepage="https://github.com/allenai/scifact",
            citation="Wadden et al. (2020), Fact or Fiction: Verifying Scientific Claims. EMNLP. "
            "https://doi.org/10.18653/v1/2020.emnlp-main.609",
            files=_at_levels("claims_train.jsonl", "claims_dev.jsonl"),
            reader=claims.read_scifact,
            how="Download data.tar.gz as described at https://github.com/allenai/scifact, unpack it",
        ),
        Source(
            name=claims.HEALTHVER,
            title="HealthVer: health claims about COVID-19 with evidence from scientific articles",
            licence=claims.LICENCES[claims.HEALTHVER],
            homepage="https://github.com/sarrouti/HealthVer",
            citation="Sarrouti et al. (2021), Evidence-based Fact-Checking of Health-related Claims. Findings of "
            "EMNLP. https://doi.org/10.18653/v1/2021.findings-emnlp.297",
            files=_at_levels("healthver_*.csv"),
            reader=claims.read_healthver,
            how="Get healthver_train.csv, healthver_dev.csv and healthver_test.csv from the folder data of "
            "https://github.com/sarrouti/HealthVer",
        ),
        Source(
            name=claims.CITATION_INTEGRITY,
            title="Citation-Integrity: citing sentences with evidence from the cited biomedical articles",
            licence=claims.LICENCES[claims.CITATION_INTEGRITY],
            homepage="https://github.com/ScienceNLP-Lab/Citation-Integrity",
            citation="Sarol et al. (2024), Assessing citation integrity in biomedical publications: corpus annotation "
            "and NLP models. Bioinformatics 40(7). https://doi.org/10.1093/bioinformatics/btae420",
            files=_at_levels("claims_*.jsonl", "claims-*.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl"),
            reader=claims.read_citation_integrity,
            how="Get claims_train.jsonl, claims_dev.jsonl, claims_test.jsonl and corpus.jsonl from the link in the "
            "README of https://github.com/ScienceNLP-Lab/Citation-Integrity",
        ),
        Source(
            name=claims.NLI4CT,
            title="NLI4CT: statements about the reports of breast cancer trials",
            licence=claims.LICENCES[claims.NLI4CT],
            homepage="https://github.com/ai-systems/nli4ct",
            citation="Jullien et al. (2023), NLI4CT: Multi-Evidence Natural Language Inference for Clinical Trial "
            "Reports. EMNLP. https://arxiv.org/abs/2305.03598",
            files=_at_levels("train.json", "dev.json"),
            reader=claims.read_nli4ct,
            how="Download Complete_dataset.zip from https://github.com/ai-systems/nli4ct, unpack it",
        ),
        Source(
            name=claims.MEDHALLU,
            title="MedHallu: true and hallucinated answers to PubMedQA's questions, with the abstracts",
            licence=claims.LICENCES[claims.MEDHALLU],
            homepage="https://huggingface.co/datasets/UTAustin-AIHealth/MedHallu",
            citation="Pandit et al. (2025), MedHallu: A Comprehensive Benchmark for Detecting Medical Hallucinations "
            "in Large Language Models. https://arxiv.org/abs/2502.14302",
            files=("pqa_*/*.parquet", "pqa_*.parquet", "pqa_*.jsonl", "training_half.jsonl"),
            reader=claims.read_medhallu,
            how='Get the folders pqa_labeled and pqa_artificial of Hugging Face\'s "UTAustin-AIHealth/MedHallu"',
        ),
        Source(
            name="wikitext-2",
            title="WikiText-2: general English text, for replay and for measuring forgetting",
            licence="CC BY-SA 4.0",
            homepage="https://huggingface.co/datasets/Salesforce/wikitext",
            files=("test.txt", "valid.txt"),
            reader=None,
            how='Save the splits of Hugging Face\'s "Salesforce/wikitext", configuration "wikitext-2-raw-v1", as '
            "test.txt and valid.txt",
        ),
        Source(
            name="sample",
            title="A small synthetic data set in PubMedQA's format, included with Meditune",
            licence=pubmedqa.SYNTHETIC_LICENCE,
            homepage="",
            files=(pubmedqa.FILE.name,),
            reader=pubmedqa.read_synthetic,
            packaged=pubmedqa.FILE,
        ),
    )
}


UNKNOWN = "unknown"
NO_ADVICE = "This summarizes the licence texts. It is not legal advice."


@dataclass(frozen=True)
class Licence:
    """A licence and its requirements for sharing data."""

    hub: str
    """Name on the Hugging Face hub; `other` if it has none"""
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


def licence_named(text: str) -> Licence | None:
    """Return the licence that a text names ("CC BY 4.0", "cc-by-sa-4.0", "MIT"), or None."""
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
    """Return the hub's names of the licences, each once; `unknown` for an unknown licence."""
    found = [licence_named(text) for text in texts]
    return list(dict.fromkeys(licence.hub if licence else UNKNOWN for licence in found))


def licence_requirements(terms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return, as sentences, the combined requirements for sharing sources together.

    `terms` has, for each source, the `licences` of its rows.
    """
    named = [(source, text, licence_named(text)) for source, row in terms.items() for text in row["licences"]]
    lines = []
    for trait, sentence in (
        ("no_sharing", "Rows may only be shared with people who have signed the agreement: {}."),
        ("notice", "The copyright notice and the licence text must stay with the data: {}."),
        ("attribution", "The authors and the licence must be named, and changes must be indicated: {}."),
        ("non_commercial", "The data may not be used commercially: {}."),
        ("no_derivatives", "Changed versions may not be shared; splits and cleaned rows may count as such: {}."),
        ("share_alike", "Anything derived from the data must be shared under the same licence (share-alike): {}."),
    ):
        if affected := [f"{source} ({text})" for source, text, licence in named if getattr(licence, trait, False)]:
            lines.append(sentence.format(", ".join(affected)))
    found = [licence for _, _, licence in named if licence]
    share_alike = {licence.hub for licence in found if licence.share_alike}
    non_commercial = {licence.hub for licence in found if licence.non_commercial} - share_alike
    if len(share_alike) > 1 or (share_alike and non_commercial):
        both = " and ".join([*sorted(share_alike), *sorted(non_commercial)])
        lines.append(
            f"No single licence covers the mixed set: {both} require different ones, so keep their rows apart."
        )
    unknown = ", ".join(f"{source} ({text})" for source, text, licence in named if licence is None)
    if unknown:
        lines.append(f"Meditune doesn't know these licences; check whether and how the rows may be shared: {unknown}.")
    return lines


DATA_VARIABLE = "MEDITUNE_DATA"
OFFLINE_VARIABLES = ("MEDITUNE_OFFLINE", "HF_HUB_OFFLINE")
TIMEOUT_SECONDS = 30.0
_CHUNK = 2**18


def locate_source(source_name: str, path: Path | str | None = None, download: bool = True) -> Path:
    """Return the folder (or file) of a source, and download it if necessary.

    The search order is `path` (if given, nothing else is tried), `$MEDITUNE_DATA/NAME`, `NAME` in the cache
    (`$MEDITUNE_CACHE` or ~/.cache/meditune), the publisher's site. Raises DataError that says where to get the files
    and where to put them.
    """
    source = known_source(source_name)
    if path is not None:
        return _given(source, Path(path).expanduser())
    if source.packaged is not None:
        if not source.packaged.is_file():
            raise DataError(f"{source.packaged} is missing from this installation. Reinstall Meditune.")
        return source.packaged
    places = data_places(source.name)
    for place in places:
        if has_files(source, place):
            return place
    why = _why_no_download(source, download)
    if why:
        raise DataError(_not_found(source, places, why))
    _fetch(source, places)
    return places[-1]


def known_source(source_name: str) -> Source:
    """Return the source of that name. Raises DataError with the nearest match if there is none."""
    if source_name in SOURCES:
        return SOURCES[source_name]
    readable = [*(name for name, source in SOURCES.items() if source.reader), "own", "own/NAME"]
    near = difflib.get_close_matches(source_name.lower(), readable, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"There is no data source {source_name!r}. Choose from {', '.join(readable)}.{hint}")


def has_files(source: Source, folder: Path) -> bool:
    """Return True if the folder contains one of the source's files."""
    return folder.is_dir() and any(True for pattern in source.files for _ in folder.glob(pattern))


def offline() -> bool:
    """Return True if downloads are turned off: MEDITUNE_OFFLINE or HF_HUB_OFFLINE is 1, true, yes or on."""
    return any(os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"} for name in OFFLINE_VARIABLES)


def _fetch(source: Source, places: list[Path]) -> None:
    """Download a source's files under temporary names, check all of them, then rename them, all or none.

    Raises DataError with the URL and the places where the user may put the files instead.
    """
    folder = places[-1]
    partials = {folder / f".{each.filename}.{os.getpid()}.partial": each for each in source.download}
    download = source.download[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial, download in partials.items():
            if problem := _receive(download, partial):
                raise DataError(_not_found(source, places, f"{download.url} {problem}"))
        for partial, download in partials.items():
            partial.replace(folder / download.filename)
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and broken connections are OSErrors
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise disk_full(folder / download.filename) from error
        reason = getattr(error, "reason", None) or error
        raise DataError(_not_found(source, places, f"{download.url} can't be fetched ({reason})")) from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _receive(download: Download, partial: Path) -> str:
    """Write the download to `partial`; returns the problem with it, or an empty text."""
    digest = hashlib.sha256()
    received = 0
    request = urllib.request.Request(download.url, headers={"User-Agent": "meditune"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer, partial.open("wb") as stream:
        length = int(answer.headers.get("Content-Length") or 0)
        with Progress(f"Downloading {download.filename}", length / 1e6 or None, "MB") as progress:
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                progress.advance(len(chunk) / 1e6)
    if length and received != length:
        return f"was cut off after {received:,} of {length:,} bytes"
    if download.sha256 and digest.hexdigest() != download.sha256:
        return f"isn't the expected file (SHA-256 {digest.hexdigest()}, expected {download.sha256})"
    if download.contents_sha256:
        try:
            found = contents_sha256(partial)
        except DataError as error:
            return f"isn't the publisher's zip: {error}"
        if found != download.contents_sha256:
            return f"contains other files than expected (SHA-256 {found}, expected {download.contents_sha256})"
    return ""


def _given(source: Source, path: Path) -> Path:
    if (path.exists() and not path.is_dir()) or has_files(source, path):
        return path
    state = f"contains none of {', '.join(source.files)}" if path.is_dir() else "no such file or folder"
    raise DataError(f"{path}: {state}. The recipe gives this path for {source.name!r}; {_how(source)}.")


def data_places(name: str) -> list[Path]:
    """Return the folders to search for data of that name; the last one is the cache."""
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named).expanduser() / name] if named else []), cache_folder("data") / name]


def locate_own(path: str, citation: str | None = None) -> str:
    """Return the path of a user's own file: as given, or in the folder that MEDITUNE_DATA names; or a hub id as given.

    Raises DataError, with the citation, if a path with an ending such as .jsonl exists in neither place.
    """
    given = Path(path).expanduser()
    named = os.environ.get(DATA_VARIABLE)
    places = [given] if given.is_absolute() or not named else [given, Path(named).expanduser() / given]
    found = next((place for place in places if place.exists()), None)
    if found is None and given.suffix:
        source = f" Its source: {citation}." if citation else ""
        hint = "" if named or given.is_absolute() else f" A relative path is also searched for in ${DATA_VARIABLE}."
        raise DataError(f"No file {' or '.join(map(str, places))}.{source}{hint}")
    return str(found or path)


def _why_no_download(source: Source, allowed: bool) -> str:
    if not source.download:
        return "it has no public download"
    if not allowed:
        return "downloads are turned off"
    if offline():
        return f"downloads are turned off by {' or '.join(name for name in OFFLINE_VARIABLES if os.environ.get(name))}"
    return ""


def _how(source: Source) -> str:
    if source.how:
        return source.how
    return f"get {' and '.join(each.url for each in source.download) or source.homepage}"


def _not_found(source: Source, places: list[Path], reason: str) -> str:
    how = _how(source)
    return (
        f"No data for {source.name!r} in {' or '.join(str(place) for place in places)}, and {reason}. "
        f"{how[0].upper()}{how[1:]} and put it into {places[-1]}, or point at your copy with {DATA_VARIABLE} or the "
        "recipe."
    )
