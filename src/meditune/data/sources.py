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
    """One file to fetch; without a checksum only its length is checked."""

    url: str
    filename: str
    sha256: str | None = None


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
    """Fetched in this order; the last one is among `files`, so a broken-off download isn't taken for a whole one."""
    how: str = ""
    """How to get it where it can't simply be downloaded."""
    citation: str = ""
    """As its publisher asks to be cited."""
    restricted: bool = False
    """Whether its licence forbids passing rows on (`data/restrictions.py`)."""
    packaged: Path | None = None
    """The file itself where it comes with Meditune."""


_PUBMEDQA_DATA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa/master/data"

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
                    f"{_PUBMEDQA_DATA}/test_ground_truth.json",
                    "test_ground_truth.json",
                    "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
                ),
                Download(
                    f"{_PUBMEDQA_DATA}/ori_pqal.json",
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
                Download("https://github.com/abachaa/MedQuAD/archive/refs/heads/master.zip", "MedQuAD-master.zip"),
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
                Download(
                    "https://github.com/abachaa/LiveQA_MedicalTask_TREC2017/archive/refs/heads/master.zip",
                    "LiveQA_MedicalTask_TREC2017-master.zip",
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
