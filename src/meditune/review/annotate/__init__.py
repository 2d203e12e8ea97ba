"""Rows of the data, checked by people: chosen, judged on the page of review, decided on, and taken back."""
