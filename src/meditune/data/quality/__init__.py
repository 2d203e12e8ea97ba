"""Quality control: rules that check rows, the ledger of the changes, and the summary in quality.json."""
