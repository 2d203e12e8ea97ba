"""Sources as passages: one reader per source, one record."""
