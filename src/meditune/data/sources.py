"""The sources Meditune knows: what each is, under which licence, where it comes from and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meditune.data import liveqa, medquad, mimic, pubmedqa, synthetic
from meditune.data.example import Example
from meditune.data.rejects import Rejects

Reader = Callable[[Path, Rejects], Iterator[Example]]


@dataclass(frozen=True)
class Download:
    """One file to fetch, of a fixed commit, so that a publisher's branch may move without changing what is read."""

    url: str
    filename: str
    sha256: str | None = None
    """Of the file's bytes; without it, and without `contents_sha256`, only the length is checked."""
    contents_sha256: str | None = None
    """Of the XML files in a zip (`data/archive.py`, `contents_sha256`): GitHub may pack the same files otherwise."""


@dataclass(frozen=True)
class Source:
    """A data set that a recipe can name."""

    name: str
    title: str
    licence: str
    homepage: str
    files: tuple[str, ...]
    """Names or patterns under the source's folder; one that is there is enough."""
    reader: Reader | None
    """Makes Examples of it; None for plain text."""
    download: tuple[Download, ...] = ()
    """All are fetched and checked before the first one gets its name, so a part isn't taken for the whole."""
    how: str = ""
    """How to get it where it can't simply be downloaded."""
    citation: str = ""
    """As its publisher asks to be cited."""
    restricted: bool = False
    """Whether its licence forbids passing rows on (`data/restrictions.py`)."""
    packaged: Path | None = None
    """The file itself where it comes with Meditune."""


_PUBMEDQA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa"
_MEDQUAD_COMMIT = "7e94c7b336f1f8e010c03091df691c8bea014399"
"""Holds every XML file of the collection as it is published today."""
_LIVEQA = "https://raw.githubusercontent.com/abachaa/LiveQA_MedicalTask_TREC2017"


def _liveqa(commit: str, path: str, sha256: str) -> Download:
    return Download(f"{_LIVEQA}/{commit}/{path}", path.rpartition("/")[2], sha256)


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
                Download(
                    f"{_PUBMEDQA}/3e7616d288b52edaf38f5fd5c59821c7806bde86/data/test_ground_truth.json",
                    "test_ground_truth.json",
                    "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
                ),
                Download(
                    f"{_PUBMEDQA}/1f00b98d5cc626844bf8c4ca513b6e62c40071ec/data/ori_pqal.json",
                    "ori_pqal.json",
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
                _liveqa(
                    "e784f2d28b6a174e9a8d9f740876bdaccbd705af",
                    "TestDataset/TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml",
                    "f6384fcf03e9b1bd0d9a15f6ea1a1aafc9491082e63fef0922ae2d6bc451805b",
                ),
                _liveqa(
                    "d6c0998610d7e775100eb6482f89ea6120fa139c",
                    "TestDataset/TREC-2017-LiveQA-Medical-Test.xml",
                    "be321b6708d1cfffe7117ac36fb98c88ad0b457185b48cc6cec80fbf810e8046",
                ),
                _liveqa(
                    "40fe188f25263df9e0ee907859e10f737477d259",
                    "TrainingDatasets/TREC-2017-LiveQA-Medical-Train-1.xml",
                    "04b307031ab9d2ff0b2e8593f6c7e2313aa86e3da25dabd85ffc051ea431b4d7",
                ),
                _liveqa(
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
            name="wikitext-2",
            title="WikiText-2: general English, for replay and for measuring forgetting",
            licence="CC BY-SA 4.0",
            homepage="https://huggingface.co/datasets/Salesforce/wikitext",
            files=("test.txt", "valid.txt"),
            reader=None,
            how='Save the splits of Hugging Face\'s "Salesforce/wikitext", configuration "wikitext-2-raw-v1", as '
            "test.txt and valid.txt",
        ),
        Source(
            name="sample",
            title="A small synthetic set in PubMedQA's form that comes with Meditune",
            licence=synthetic.LICENCE,
            homepage="",
            files=(synthetic.FILE.name,),
            reader=synthetic.read,
            packaged=synthetic.FILE,
        ),
    )
}
