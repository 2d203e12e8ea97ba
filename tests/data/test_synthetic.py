from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, locate


def test_no_synthetic_example_passes_for_a_published_study() -> None:
    reader = SOURCES["sample"].reader
    assert reader is not None
    rejects = Rejects()
    examples = list(reader(locate("sample"), rejects))
    assert len(examples) >= 100
    assert len(rejects) == 0
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        assert example.id.startswith("sample:")
        assert (example.source, example.meta["licence"], example.meta["synthetic"]) == ("sample", "CC0-1.0", True)
        assert "url" not in example.meta
        assert example.decision
        assert example.answer
        assert example.context
