"""Small files in the publishers' exact layouts, for the tests of the readers."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

DECISIONS = ("yes", "no", "maybe")


def jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """The rows as a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def pubmedqa_item(number: int, **changes: Any) -> dict[str, Any]:
    """One item as in `ori_pqal.json`; `changes` replace fields, None as value removes one."""
    item: dict[str, Any] = {
        "QUESTION": f"Does treatment {number} help?",
        "CONTEXTS": [f"We studied treatment {number} in ward {number}.", f"It helped {number} of 200 patients."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "MESHES": ["Humans", "Treatment Outcome"],
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "final_decision": DECISIONS[number % 3],
        "LONG_ANSWER": f"Treatment {number} may help some patients.",
    } | changes
    return {key: value for key, value in item.items() if value is not None or key == "YEAR"}


def pubmedqa(folder: Path, items: Mapping[str, Any], name: str = "ori_pqal.json") -> Path:
    """`items` (PubMed id -> item) as one of the publisher's JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(items, indent=4), encoding="utf-8")
    return path


def pubmedqa_hub_row(number: int, **changes: Any) -> dict[str, Any]:
    """One row as in the hub's `qiaojin/PubMedQA`, configuration `pqa_labeled`."""
    return {
        "pubid": 20_000_000 + number,
        "question": f"Does treatment {number} help?",
        "context": {
            "contexts": [f"We studied treatment {number}."],
            "labels": ["BACKGROUND"],
            "meshes": ["Humans"],
            "reasoning_required_pred": ["y", "e", "s"],
            "reasoning_free_pred": ["y", "e", "s"],
        },
        "long_answer": f"Treatment {number} may help.",
        "final_decision": DECISIONS[number % 3],
    } | changes


def medquad_document(
    document: str, focus: str, pairs: Iterable[tuple[str, str, str]], *, source: str = "CancerGov", layout: str = ""
) -> str:
    """One MedQuAD file of (question type, question, answer); `layout` is "", "flat" (CDC) or "doc" (NINDS)."""
    rows = list(enumerate(pairs, start=1))
    url = f"https://www.example.org/{document}"
    if layout == "doc":
        body = "".join(
            f'<pair pid="{n}">\n<question qid="{document}-{n}" qtype="{kind}">{escape(question)}</question>\n'
            f"<answer>{escape(answer)}</answer>\n</pair>\n"
            for n, (kind, question, answer) in rows
        )
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<doc docid="{document}" corpus="{source}" url="{url}">\n'
            f"<doctitle-focus>{escape(focus)}</doctitle-focus>\n<umls>\n<cui></cui>\n<semanticType></semanticType>\n"
            f"<semanticGroup></semanticGroup>\n</umls>\n<qaPairs>\n{body}</qaPairs>\n</doc>\n"
        )
    umls = "<UMLS>\n<CUI></CUI>\n<SemanticType></SemanticType>\n<SemanticGroup></SemanticGroup>\n</UMLS>"
    if not layout:
        umls = (
            "<FocusAnnotations>\n\t<Category>Disease</Category>\n\t<UMLS>\n\t\t<CUIs>\n\t\t\t<CUI>C0751606</CUI>\n"
            "\t\t</CUIs>\n\t\t<SemanticTypes>\n\t\t\t<SemanticType>T191</SemanticType>\n\t\t</SemanticTypes>\n"
            "\t\t<SemanticGroup>Disorders</SemanticGroup>\n\t</UMLS>\n\t<Synonyms>\n"
            f"\t\t<Synonym>{escape(focus)} (disorder)</Synonym>\n\t</Synonyms>\n</FocusAnnotations>"
        )
    body = "".join(
        f'\t<QAPair pid="{n}">\n\t\t\t<Question qid="{document}-{n}" qtype="{kind}">{escape(question)}</Question>\n'
        f"\t\t\t<Answer>{escape(answer)}</Answer>\n\t</QAPair>\n"
        for n, (kind, question, answer) in rows
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Document id="{document}" source="{source}" url="{url}">\n'
        f"<Focus>{escape(focus)}</Focus>\n{umls}\n<QAPairs>\n{body}</QAPairs>\n</Document>\n"
    )


def medquad(folder: Path, documents: Mapping[str, str]) -> Path:
    """`documents` (such as "1_CancerGov_QA/0000001_1.xml" -> XML) under `folder`."""
    for name, text in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


LIVEQA_TRAIN_1 = """<?xml version="1.0" encoding="UTF-8"?>
<NLM-QUESTIONS>
<NLM-QUESTION questionid="Q1" fRef="11373">
	<SUBJECT></SUBJECT>
	<MESSAGE>Literature on gout.  Please tell me where I can get it. </MESSAGE>
	<SUB-QUESTIONS>
		<SUB-QUESTION subqid="Q1-S1">
			<ANNOTATIONS>
				<FOCUS>gout</FOCUS>
				<TYPE>information</TYPE>
			</ANNOTATIONS>
			<ANSWERS>
				<ANSWER answerid="Q1-S1-A1" pairid="1">Gout is a kind of arthritis.</ANSWER>
				<ANSWER answerid="Q1-S1-A2" pairid="2">Gout comes from uric acid.</ANSWER>
			</ANSWERS>
		</SUB-QUESTION>
		<SUB-QUESTION subqid="Q1-S2">
			<ANNOTATIONS>
				<FOCUS>gout</FOCUS>
				<FOCUS>uric acid</FOCUS>
				<TYPE>treatment</TYPE>
			</ANNOTATIONS>
			<ANSWERS>
				<ANSWER answerid="Q1-S2-A1" pairid="3"></ANSWER>
			</ANSWERS>
		</SUB-QUESTION>
	</SUB-QUESTIONS>
</NLM-QUESTION>
</NLM-QUESTIONS>
"""

LIVEQA_TRAIN_2 = """\ufeff<?xml version="1.0" encoding="UTF-8"?>
<NLM-QUESTIONS>
<NLM-QUESTION qid="1.0">
	<SUBJECT>Lyme Disease</SUBJECT>
	<MESSAGE>I was bitten by a tick. What should I do now about the ring that I see?</MESSAGE>
	<SUB-QUESTIONS>
	<SUB-QUESTION>
	<ANNOTATIONS>
		<FOCUS>Lyme Disease</FOCUS>
		<TYPE>Treatment</TYPE>
	</ANNOTATIONS>
	<ANSWERS>
	<ANSWER>See a doctor soon.</ANSWER></ANSWERS></SUB-QUESTION></SUB-QUESTIONS>
</NLM-QUESTION>
<NLM-QUESTION qid="2.0">
	<SUBJECT>Noonan syndrome</SUBJECT>
	<MESSAGE>What are the  references with noonan syndrome and polycystic renal disease?</MESSAGE>
	<SUB-QUESTIONS>
	<SUB-QUESTION>
	<ANNOTATIONS>
		<FOCUS>Noonan syndrome</FOCUS>
		<TYPE>Information</TYPE>
	</ANNOTATIONS>
	<ANSWERS>
	<ANSWER>Some patients have both.</ANSWER></ANSWERS></SUB-QUESTION></SUB-QUESTIONS>
</NLM-QUESTION>
</NLM-QUESTIONS>
"""


def liveqa_test(summaries: bool) -> str:
    """The test file with one question; with `summaries` in the later layout that adds NLM-Summary."""
    summary = "\t\t<NLM-Summary>Are Noonan syndrome and kidney cysts related?</NLM-Summary>\n" if summaries else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<LiveQA2017-Medical-Test-Set-Full>\n\t<NLM-QUESTION qid="TQ1">\n'
        '\t\t<Original-Question qfile="71.txt">\n\t\t\t<SUBJECT>Noonan syndrome</SUBJECT>\n'
        "\t\t\t<MESSAGE>What are the references with noonan syndrome and polycystic renal disease</MESSAGE>\n"
        "\t\t</Original-Question>\n"
        "\t\t<NIST-PARAPHRASE>How are Noonan syndrome and kidney cysts related?</NIST-PARAPHRASE>\n"
        f"{summary}\t\t<ANNOTATIONS>\n"
        '\t\t\t<FOCUS fid="F1" fcategory="Problem">noonan syndrome</FOCUS>\n'
        '\t\t\t<FOCUS fid="F2" fcategory="Problem">polycystic renal disease</FOCUS>\n'
        '\t\t\t<TYPE tid="T1" hasFocus="F1,F2">EFFECT</TYPE>\n\t\t</ANNOTATIONS>\n\t\t<ReferenceAnswers>\n'
        '\t\t\t<RefAnswer aid="TQ1A1">\n\t\t\t\t<ANSWER> About 11% have\n\t\t\t\t\tmild changes. </ANSWER>\n'
        "\t\t\t\t<AnswerURL> https://www.example.org/1 </AnswerURL>\n"
        "\t\t\t\t<COMMENT>A case report.</COMMENT>\n\t\t\t</RefAnswer>\n"
        '\t\t\t<ReferenceAnswer aid="TQ1A2">\n\t\t\t\t<ANSWER>Most need no treatment.</ANSWER>\n'
        "\t\t\t\t<AnswerURL>https://www.example.org/2</AnswerURL>\n\t\t\t\t<COMMENT></COMMENT>\n"
        "\t\t\t</ReferenceAnswer>\n\t\t</ReferenceAnswers>\n\t</NLM-QUESTION>\n</LiveQA2017-Medical-Test-Set-Full>\n"
    )


def liveqa(folder: Path) -> Path:
    """The four LiveQA-Medical files in the publisher's folders."""
    files = {
        "TestDataset/TREC-2017-LiveQA-Medical-Test.xml": liveqa_test(summaries=False),
        "TestDataset/TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml": liveqa_test(summaries=True),
        "TrainingDatasets/TREC-2017-LiveQA-Medical-Train-1.xml": LIVEQA_TRAIN_1,
        "TrainingDatasets/TREC-2017-LiveQA-Medical-Train-2.xml": LIVEQA_TRAIN_2,
    }
    return medquad(folder, files)


NOTE_COLUMNS = (
    *("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME"),
    *("CATEGORY", "DESCRIPTION", "CGID", "ISERROR", "TEXT"),
)

NOTE_TEXT = """Admission Date:  [**2151-7-16**]       Discharge Date:  [**2151-8-4**]

Service: ADDENDUM

History of Present Illness:
Mr. [**Known lastname 1829**] is a 61 year-old man with cough, seen at [**Hospital1 18**].

Brief Hospital Course:
He was treated with antibiotics; call Dr. [**Last Name (STitle) **] at [**Telephone/Fax (1) 170**].

Discharge Medications:
1. Levofloxacin 500 mg Tablet Sig: One (1) Tablet PO once a day.

Discharge Diagnosis:
Pneumonia

Discharge Instructions:
You came with a lung infection. Take "all" of your tablets,
and call us if you have a fever.

Followup Instructions:
[**Month (only) 547**] visit in [**Location (un) 620**]
"""


def note(row_id: int, **changes: Any) -> dict[str, Any]:
    """One row of NOTEEVENTS.csv: an invented discharge summary."""
    return {
        "ROW_ID": row_id,
        "SUBJECT_ID": 22532,
        "HADM_ID": 167853,
        "CHARTDATE": "2151-08-04",
        "CHARTTIME": "",
        "STORETIME": "",
        "CATEGORY": "Discharge summary",
        "DESCRIPTION": "Report",
        "CGID": "",
        "ISERROR": "",
        "TEXT": NOTE_TEXT,
    } | changes


def noteevents(path: Path, notes: Iterable[Mapping[str, Any]]) -> Path:
    """NOTEEVENTS.csv, or NOTEEVENTS.csv.gz by the name, as PhysioNet's PostgreSQL export writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8", newline="")  # type: ignore[arg-type]
        writer = csv.DictWriter(stream, NOTE_COLUMNS, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writeheader()
        writer.writerows(notes)
        stream.flush()
        stream.detach()
    return path
