"""Quality control: rules that check rows, the ledger of their changes, and the summary in quality.json."""
