"""Quality control: rules that look at rows, the ledger of what they did, and what quality.json says of it."""
