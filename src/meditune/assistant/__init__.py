"""The assistant: triage of messages, answers with citations, and the checks before a sentence is shown."""
