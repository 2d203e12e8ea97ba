"""Base models: where they come from, how they are loaded, and what is put on top of them."""
