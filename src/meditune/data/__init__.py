"""From the publishers' files to clean, split, explained Examples."""
