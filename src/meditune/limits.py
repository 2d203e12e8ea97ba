"""What every medical answer carries: its limits, and when to seek urgent care."""

LIMITS = (
    "This model answers questions about health in general terms. It can be wrong, it knows nothing about you, and it "
    "replaces no doctor. In an emergency (chest pain, trouble breathing, signs of a stroke, heavy bleeding, thoughts "
    "of suicide) call your local emergency number at once."
)

LIMITS_LINE = (
    "General information, not a doctor's advice. It can be wrong. In an emergency call your local emergency number."
)
"""The same in one short line, beside every answer that is served"""
