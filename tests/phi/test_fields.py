"""Identifiers in structured texts, and addresses, towns and dates of many countries."""

import pytest

from meditune import phi

HL7 = (
    "PID|1||6612093^^^STJ^MR||OYELARAN^TEMITOPE^A||19640312|F|||12 MAIN ST^^SPRINGFIELD^IL^62701||(217)555-0188\n"
    "PV1|1|O|CLINIC^3||||4471^VANDERKOLK^ELSBETH"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HL7,
            [
                "6612093",
                "OYELARAN^TEMITOPE^A",
                "19640312",
                "12 MAIN ST",
                "SPRINGFIELD",
                "62701",
                "(217)555-0188",
                "4471",
                "VANDERKOLK^ELSBETH",
            ],
        ),
        (
            '{"patient_name": "Temitope Oyelaran", "dob": "1964-03-12", "mrn": "A-66120", "hb": 11.2, "sex": "female"}',
            ["Temitope Oyelaran", "1964-03-12", "A-66120"],
        ),
        (
            '<name value="Oyelaran, Temitope"/><birthDate value="1964-03-12"/><status value="final"/>',
            ["Oyelaran, Temitope", "1964-03-12"],
        ),
        (
            "surname,given_name,dob,ward,potassium\nOyelaran,Temitope,12/03/1964,B4,4.1\nSkovgaard,Maren,01/11/1950,B4,3.9",
            ["Oyelaran", "Temitope", "12/03/1964", "Skovgaard", "Maren", "01/11/1950"],
        ),
        (
            "Name = Temitope Oyelaran\nDOB = 12/03/1964\nHospital No = 66120-B\nDiagnosis = asthma",
            ["Temitope Oyelaran", "12/03/1964", "66120-B"],
        ),
    ],
    ids=["hl7", "json", "fhir", "csv", "lines"],
)
def test_structured_texts_are_searched_by_the_names_of_their_fields(text, expected):
    assert [text[span.start : span.end] for span in phi.find(text)] == expected


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (r'{"name": "Ottoline \"Otti\" Vandersloot", "note": "\"Ow\""}', r'{"name": "[NAME]", "note": "\"Ow\""}'),
        (r'"{\"surname\": \"Hope\", \"zip\": \"02169\"}"', r'"{\"surname\": \"[NAME]\", \"zip\": \"[LOCATION]\"}"'),
        ('{"given": ["Oyelaran", "Abeo", "Chik', '{"given": ["[NAME]", "[NAME]", "[NAME]'),
        ('{\n  "given": [\n            "Oyelaran"\n  ]\n}', '{\n  "given": [\n            "[NAME]"\n  ]\n}'),
        ("patient(surname='Oyelaran', sex='F')", "patient(surname='[NAME]', sex='F')"),
        ('{"system": "phone", "value": "5550134812"}', '{"system": "phone", "value": "[PHONE]"}'),
        (
            '{"text": "Surname", "answer": [{"valueString": "Hope"}]}',
            '{"text": "Surname", "answer": [{"valueString": "[NAME]"}]}',
        ),
        ("<Surname>\n  Oyelaran\n</Surname>", "<Surname>\n  [NAME]\n</Surname>"),
        ("<Surname><![CDATA[Oyelaran]]></Surname>", "<Surname><![CDATA[[NAME]]]></Surname>"),
        ("<family value='Oyelaran'/>", "<family value='[NAME]'/>"),
        ("<name><family value='Oyelaran'/></name>" + " " * 300, "<name><family value='[NAME]'/></name>" + " " * 300),
        ('<Patient sex="F" family="Oyelaran"/>', '<Patient sex="F" family="[NAME]"/>'),
        ('<item name="Surname">Hope</item>', '<item name="Surname">[NAME]</item>'),
        ('<item name="Surname" value="Hope"/>', '<item name="Surname" value="[NAME]"/>'),
        ('<system value="phone"/>\n<value value="5550134812"/>', '<system value="phone"/>\n<value value="[PHONE]"/>'),
        ("<tr><td>Surname</td><td>Hope</td></tr>", "<tr><td>Surname</td><td>[NAME]</td></tr>"),
        (
            'surname,dob,note,k\nOyelaran,12/03/1964,"seen\n""twice"", well",4\nHope,01/11/1950,5" nail,3\nLow,none,,4',
            'surname,dob,note,k\n[NAME],[DATE],"seen\n""twice"", well",4\n[NAME],[DATE],5" nail,3\n[NAME],none,,4',
        ),
        ("Surname: Oyelaran  Forename: Temitope", "Surname: [NAME]  Forename: [NAME]"),
        ("Surname: Oyelaran Forename: Temitope Sex: F", "Surname: [NAME] Forename: [NAME] Sex: F"),
        ("Surname: Oyelaran, Forename: Temitope, Ward: B4", "Surname: [NAME], Forename: [NAME], Ward: B4"),
        ("Dr. Jane Ward: How are you?\nMr. Street: It hurts.", "Dr. [NAME]: How are you?\nMr. [NAME]: It hurts."),
        ("Village: Githunguri. Complaint: cough", "Village: [LOCATION]. Complaint: cough"),
        ("| Surname | Hope |\n| Phone | 08035550142 |", "| Surname | [NAME] |\n| Phone | [PHONE] |"),
        ("{'PatientName': 'Doe^Jane'}", "{'PatientName': '[NAME]'}"),
        ("(0010,0010) PN [Kowalczyk^Zdzislawa]", "(0010,0010) PN [[NAME]]"),
        ("patient_surname;patient_dob;k\nHope;02.11.1948;4", "patient_surname;patient_dob;k\n[NAME];[DATE];4"),
        ("Prénom : Ghislaine\nCode postal : 44000", "Prénom : [NAME]\nCode postal : [LOCATION]"),
        ("Name: OYELARAN TEMITOPE Hospital No: A12345", "Name: [NAME] Hospital No: [ID]"),
    ],
)
def test_the_value_of_a_field_is_found_and_nothing_beside_it(text, masked):
    assert phi.mask(text) == masked


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_segments_of_hl7_may_end_with_any_line_break(end):
    text = HL7.replace("\n", end)
    masked = (
        f"PID|1||[ID]^^^STJ^MR||[NAME]||[DATE]|F|||[LOCATION]^^[LOCATION]^IL^[LOCATION]||[PHONE]{end}"
        "PV1|1|O|CLINIC^3||||[ID]^[NAME]"
    )
    assert phi.mask(text) == masked


def test_an_hl7_address_without_letters_or_digits_is_left_alone():
    text = "PID|1||||||||||\t^~\x0c^. ^"
    assert phi.mask(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Patient lives at Lindenstraße 12, 10969 Berlin.", "Patient lives at [LOCATION], [LOCATION] [LOCATION]."),
        ("Discharged to 14 Rosebery Avenue, London EC1R 4TD.", "Discharged to [LOCATION], [LOCATION] [LOCATION]."),
        ("The patient moved here from Zürich last year.", "The patient moved here from [LOCATION] last year."),
        ("Seen on 12. März 2021 for review.", "Seen on [DATE] for review."),
        ("Ingresó el 12 de marzo de 2021 con fiebre.", "Ingresó el [DATE] con fiebre."),
        ("Admitted on the twelfth of March with pneumonia.", "Admitted on [DATE] with pneumonia."),
        ("Mrs Oke's farm at Spiddal, Co. Galway.", "Mrs [NAME]'s farm at [LOCATION], [LOCATION]."),
        ("Straße: Holstenstr. 12, PLZ/Ort: 24103 Kiel", "Straße: [LOCATION], PLZ/Ort: [LOCATION] [LOCATION]"),
        ("demeurant 8 impasse du Lavoir à Concarneau", "demeurant [LOCATION] à [LOCATION]"),
        ("Dra. Lozano, tfno 943 55 01 42", "Dra. [NAME], tfno [PHONE]"),
        ("ADR:;;14 Miramar Road;Panjim;Goa", "ADR:;;[LOCATION];[LOCATION];Goa"),
        ("Her birth date: 07 22 1956.", "Her birth date: [DATE]."),
        ("Born march third nineteen thirty eight.", "Born [DATE]."),
        ("Telefone: (21) 98555-0142", "Telefone: [PHONE]"),
        ("N° SS : 2 50 03 44 109 123 45", "N° SS : [ID]"),
        ("TNMC Reg. 68842", "TNMC Reg. [ID]"),
        ("ORDERING: KAZANTZAKIS, DEMETRIOS MD", "ORDERING: [NAME] MD"),
        ("Bed 1 Papadimitriou 78F NOF#\nBed 2 Sepsis 66M", "Bed 1 [NAME] 78F NOF#\nBed 2 Sepsis 66M"),
        ("Reviewed by Staff Nurse Okonkwo at noon.", "Reviewed by Staff Nurse [NAME] at noon."),
    ],
)
def test_addresses_and_dates_of_other_countries_are_found(text, masked):
    assert phi.mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Amoxicillin 500 mg tds for 5/7, review in 2/52 and again in 6/12.",
        "VA 6/18 right eye, 6/9 left eye.",
        "Hemoglobin   13.1   g/dL   12.0-16.0\nPlatelets   245   10^3/uL   150-400",
        "address = 0.0.0.0\nname = Default Profile\ncurl http://localhost:8000/v1/chat, ping 127.0.0.1",
        "This may first require a scan. March second quarter results.",
        '{"system": "http://loinc.org", "value": "718-7", "name": "baseline run", "phone": null}',
        "She has a Glasgow Coma Scale of 14 and a Boston brace.",
        '{"sex": "female", "name": "unknown", "haemoglobin": 11.2}',
    ],
)
def test_durations_acuities_and_scales_are_no_identifiers(text):
    assert phi.mask(text) == text
